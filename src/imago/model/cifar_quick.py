"""CifarQuick: three 5x5 convolutions and two linear layers, the network of the classic CIFAR-10 tutorials."""

from torch import Tensor, nn

from imago.errors import ConfigError


class CifarQuick(nn.Module):
    """conv5x5-32, max-pool, conv5x5-32, pool, conv5x5-64, pool, fc-64, head: 145,578 parameters at 32 px, 10 classes.

    The first ReLU comes after its pool and there is none between the linear layers, as in the original: `cifar10_quick`
    of Caffe (github.com/BVLC/caffe, examples/cifar10), after cuda-convnet's quick layers by A. Krizhevsky.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record; at least 8.
    """

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        if image_size < 8:
            raise ConfigError(f"model=cifar_quick halves images three times; preprocess.size={image_size} is below 8.")
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=5, padding=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.Conv2d(32, 64, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(4),  # no effect at 32 px; the next layer would have 3 M weights at 224 px
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.Linear(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        return self.classifier(self.features(images))
