"""A trained network together with what it needs to be used: class names and preprocess."""

from collections.abc import Sequence

from torch import Tensor, nn

from imago.images import Preprocess
from imago.pixels import Normalise


class Classifier(nn.Module):
    """Takes raw pixels: normalisation is inside, so nobody has to remember mean and std.

    Args:
        net: maps normalised float pictures (N, 3, H, W) to logits (N, K).
        class_names: K names; the place of a name is its label.
        preprocess: how pictures were prepared when the network was evaluated.
    """

    def __init__(self, net: nn.Module, class_names: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess)
        self.net = net
        self.class_names = tuple(class_names)
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 pictures (N, 3, size, size) to logits (N, K)."""
        return self.net(self.normalise(images))
