"""What every network here can do beside computing: begin with weights of a file, take gray images, stay frozen."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.freezing import freeze_parameters, keep_frozen_in_evaluation
from imago.model.layers import last_layer
from imago.model.stem import convert_to_gray, luminance, sum_colors
from imago.model.weights import keep_weights, local_file, looks_like_path, read_weights, recorded_preprocess

log = logging.getLogger(__name__)


class AdaptableNet(nn.Module):
    """A network that is fitted to data and weights; a subclass builds its layers, then calls `adapt`.

    Names and shapes of the tensors do not depend on the weights, so a checkpoint is rebuilt with `weights=None`,
    without the file; neither do the first values of the new parts.

    Attributes:
        head_names: modules of `body` that give the logits.
        new_parts: modules of `body` that were made for the data: the head, a stem for small images.
        replaced: names of the tensors that no file of weights had a value for; empty without a file.
    """

    head_names: list[str]
    new_parts: list[str]
    replaced: Sequence[str] = ()

    @property
    def body(self) -> nn.Module:
        """The network that a file of weights was made from: this one, or the one that it holds."""
        return self

    @staticmethod
    def find_weights(name: str | None, weights: str | None) -> Path | None:
        """Give the file that `model.weights` means; a run asks before it builds anything.

        Raises:
            ConfigError: nobody has published weights of this network.
            DataError: the file is not there.
        """
        if weights is not None and not looks_like_path(weights):
            raise ConfigError(f"model.weights={weights}: of this network it can be null, a file or a run directory.")
        return None if weights is None else local_file(weights)

    @staticmethod
    def weights_preprocess(name: str | None, weights: str | None) -> dict[str, Any] | None:
        """Give the record of `imago.images.Preprocess` that the weights were evaluated with; None if not known."""
        return None if weights is None else recorded_preprocess(Path(weights).expanduser())

    def adapt(
        self,
        name: str,
        file: Path | None,
        freeze: str | None,
        in_channels: int,
        head_names: Sequence[str] = (),
        new_stem: Sequence[str] = (),
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Fit the built layers to what was asked for.

        Args:
            name: of the network, for the log.
            file: of weights; None begins with random ones.
            freeze: "backbone", a glob over names of parameters, or None or "none".
            in_channels: 3, or 1 for the luminance of the images.
            head_names: of the modules that give the logits; by default the last layer.
            new_stem: names of modules that were replaced for small images.
            state: what `file` holds, where it is read already.

        Raises:
            ConfigError: settings that cannot work.
            DataError: weights that are damaged or of another network.
        """
        self.freeze = None if freeze == "none" else freeze
        self.in_channels = in_channels
        self.head_names = list(head_names) or [last_layer(self.body)]
        self.new_parts = [*self.head_names, *new_stem]
        if in_channels not in (1, 3):
            raise ConfigError(f"model.in_channels={in_channels} is neither 3 (images are read as RGB) nor 1 (gray).")
        gray_stem = convert_to_gray(self.body) if in_channels == 1 else None
        if file is not None:
            self._keep(name, file, read_weights(file) if state is None else state, gray_stem)
        if self.freeze is not None:
            freeze_parameters(self.body, self.freeze, self.new_parts, self.replaced)
            if file is not None:  # a network that is rebuilt from a checkpoint has told it before
                log.info("%s: %s", name, self._describe_frozen())
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, H, W) to logits (N, K)."""
        return self.logits(images if self.in_channels == 3 else luminance(images))

    def logits(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, K)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen part stays in evaluation, dropout included."""
        super().train(mode)
        if getattr(self, "freeze", None) == "backbone":
            # Also what has no parameters: the head learns from features that do not change.
            for module in self.children() if self.body is self else (self.body,):
                module.eval()
            for part in self.new_parts:
                self.body.get_submodule(part).train(mode)
        keep_frozen_in_evaluation(self.body)
        return self

    def _keep(self, name: str, file: Path, state: Mapping[str, Tensor], gray_stem: str | None) -> None:
        colors = {key: value for key, value in state.items() if key == gray_stem and value.shape[1:2] == (3,)}
        fitted = {**state, **{key: sum_colors(value) for key, value in colors.items()}}
        self.replaced = keep_weights(self.body, fitted, self.new_parts, file)
        log.info("%s: %s", name, _describe_kept(fitted, self.replaced, file.name))
        if colors:
            log.info("%s: %s is summed over the three colors of the file", name, gray_stem)

    def _describe_frozen(self) -> str:
        total = sum(parameter.numel() for parameter in self.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        subject = "the backbone" if self.freeze == "backbone" else self.freeze
        text = f"{subject} is frozen, {trained:,} of {total:,} parameters train"
        return f"{text} ({' and '.join(self.new_parts)})" if self.freeze == "backbone" else text


def _describe_kept(state: Mapping[str, Tensor], new: Sequence[str], source: str) -> str:
    """Count what was kept, name what is new, and say that the file's own head or stem is dropped."""
    dropped = [key for key in new if key in state]
    text = f"{len(state) - len(dropped)} of {len(state)} pretrained tensors kept from {source}"
    if new:
        text += f" (new: {', '.join(new)})"
    if dropped:
        shapes = ", ".join(f"{key} {'x'.join(map(str, state[key].shape))}" for key in dropped)
        text += f"; dropped from the file: {shapes}"
    return text
