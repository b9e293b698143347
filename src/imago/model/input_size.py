"""Whether a network takes images of a size: told before training, and without computing anything."""

from itertools import chain

import torch
from torch import nn

from imago.errors import ConfigError


def refuse_size(network: nn.Module, name: str, image_size: int, fitting_size: int, num_classes: int) -> None:
    """Try one image: a size that does not fit would end deep inside of torch.

    Args:
        network: takes (N, 3, H, W); left in evaluation, as one image may be too few for BatchNorm's statistics.
        name: of the network.
        image_size: side of the image in pixels.
        fitting_size: a side that the network was made for, in pixels.
        num_classes: K; what gives anything else than (N, K) is no classifier.

    Raises:
        ConfigError: with the reason, and `fitting_size` as the way out; or because it is no classifier.
    """
    network.eval()
    state = {key: value.to("meta") for key, value in chain(network.named_parameters(), network.named_buffers())}
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            logits = torch.func.functional_call(network, state, (image,))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"model.name={name} cannot take images of {image_size} px ({reason}); type e.g. "
            f"preprocess.size={fitting_size}."
        ) from error
    if getattr(logits, "shape", None) != (1, num_classes):
        raise ConfigError(f"model.name={name} is no classifier: it gives no logits for {num_classes} classes.")
