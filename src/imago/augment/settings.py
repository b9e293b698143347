"""Define and check the augmentation settings: one field for each key of `configs/augment/*.yaml`. Loads no torch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from imago.errors import ConfigError
from imago.instantiate import build

POLICIES = ("randaugment", "trivialaugment")
PADDING_MODES = ("zeros", "reflect")
NUM_OPERATIONS = 14  # number of operations that RandAugment samples from (Cubuk et al. 2020)
MAX_MAGNITUDE = 30  # RandAugment's scale, 0 .. 30 (Cubuk et al. 2020)

_SINGLE_IMAGE_TRANSFORMS = ("rotation_degrees", "policy", "gray_probability", "blur_probability", "extra")

# Settings that have an effect only with another setting, and that setting.
_NEEDED_BY_SETTING = {
    "policy_num_ops": "policy=randaugment",
    "policy_magnitude": "policy=randaugment",
    "blur_sigma_px": "blur_probability",
    "erase_scale": "erase_probability",
    "alternate_flip": "flip_probability",
    "crop_padding_mode": "crop_padding_px",
}


@dataclass(frozen=True)
class Augment:
    """The augmentations of training images; with the defaults all are off.

    They are applied in this order: random resized crop, crop with padding and flips; rotation, policy, gray and blur
    (one image at a time), `extra`; colors, then after normalization erasing, cutout, MixUp and CutMix (on the device),
    `extra_batch`. Each sample has its own draws.

    Attributes:
        crop_padding_px: padding on each side before a random crop back to the old size; 0 is off.
        crop_padding_mode: "zeros" or "reflect", the reflection of the image at its edge.
        flip_probability: chance of a left-right flip, in [0, 1].
        alternate_flip: every image is flipped in each second epoch, and `flip_probability` is the chance of a flip in
            the first one; an image that is repeated within an epoch keeps its side. Source: Jordan 2024, section 3.6
            (arXiv:2404.00498).
        random_resized_crop_scale: smallest and largest share of the image's area that a random crop keeps, in
            (0, 1]; the crop is scaled to the size of evaluation. None resizes as in evaluation. Source: Szegedy et
            al. 2015, section 6 (arXiv:1409.4842).
        vertical_flip_probability: chance of a top-bottom flip, in [0, 1].
        rotation_degrees: largest rotation to either side, in [0, 180]; corners become black.
        policy: "randaugment" (Cubuk et al. 2020, arXiv:1909.13719), "trivialaugment" (Müller and Hutter 2021,
            arXiv:2103.10158) or None.
        policy_num_ops: operations that RandAugment applies to each image, at least 1.
        policy_magnitude: strength of RandAugment, in 0 .. 30.
        gray_probability: chance that an image becomes gray, in [0, 1].
        blur_probability: chance of a Gaussian blur, in [0, 1].
        blur_sigma_px: smallest and largest standard deviation of that blur, in pixels, above 0.
        brightness: pixels are multiplied by a factor in [max(0, 1 - b), 1 + b], as in torchvision's ColorJitter.
        contrast: range of the factor as for brightness; it multiplies the difference from the image's mean gray.
        saturation: range of the factor as for brightness; it multiplies the difference from the pixel's own gray.
        hue: largest rotation of the hue to either side, in [0, 0.5] of the color wheel.
        erase_probability: chance that a rectangle becomes the mean color, in [0, 1]. Source: Zhong et al. 2020
            (arXiv:1708.04896).
        erase_scale: smallest and largest share of the area that the rectangle covers, in (0, 1].
        cutout_px: side of a square around a random pixel of every image that becomes the mean color; 0 is off. It
            may reach over the edge. Source: DeVries and Taylor 2017 (arXiv:1708.04552).
        mixup_alpha: images and labels are blended with those of another sample of the batch, by a weight from
            Beta(alpha, alpha); 0 is off. Source: Zhang et al. 2018 (arXiv:1710.09412).
        cutmix_alpha: a rectangle is copied from another sample, and its share of the label too; the other share is
            from Beta(alpha, alpha); 0 is off. Source: Yun et al. 2019 (arXiv:1905.04899). With `mixup_alpha` above 0
            too, each sample draws one of the two.
        extra: transforms of single images of one's own: nodes with `_target_`, or callables. Each gets and returns an
            image, a uint8 tensor (3, H, W).
        extra_batch: transforms of whole batches, as in `extra`; see `imago.augment.own_transforms.transform_batch`.

    Raises:
        ConfigError: with one line for each setting that is out of its range.
    """

    crop_padding_px: int = 0
    flip_probability: float = 0.0
    alternate_flip: bool = False
    random_resized_crop_scale: Sequence[float] | None = None
    vertical_flip_probability: float = 0.0
    rotation_degrees: float = 0.0
    policy: str | None = None
    policy_num_ops: int = 2
    policy_magnitude: int = 9
    gray_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma_px: Sequence[float] = (0.1, 2.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase_probability: float = 0.0
    erase_scale: Sequence[float] = (0.02, 0.33)
    cutout_px: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    crop_padding_mode: str = "zeros"
    extra: Sequence[Any] = ()
    extra_batch: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in (*_PAIR_MAXIMA, *_OWN_TRANSFORMS):  # OmegaConf passes a ListConfig
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = list(self._range_problems())
        if self.policy is not None and self.policy not in POLICIES:
            problems.append(f"augment.policy={self.policy} is not one of null, {', '.join(POLICIES)}.")
        if self.crop_padding_mode not in PADDING_MODES:
            modes = ", ".join(PADDING_MODES)
            problems.append(f"augment.crop_padding_mode={self.crop_padding_mode} is not one of {modes}.")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def has_single_image_transforms(self) -> bool:
        """Whether a transform of single images is on; they are slow, so worker processes pay off."""
        return any(getattr(self, name) for name in _SINGLE_IMAGE_TRANSFORMS)

    @property
    def single_image_settings(self) -> list[str]:
        """The names of the settings that are on and need one image at a time, on the CPU."""
        return [name for name in (*_SINGLE_IMAGE_TRANSFORMS, "random_resized_crop_scale") if getattr(self, name)]

    @cached_property
    def extra_transforms(self) -> list[Callable]:
        """The transforms in `extra`, built on first use: an evaluation never builds them."""
        return [build(node) if isinstance(node, Mapping) else node for node in self.extra]

    @property
    def is_mixing(self) -> bool:
        """Whether MixUp or CutMix is on; training labels are then soft, (B, K)."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def describe(self) -> str:
        """Return the settings that are on, and those that were set without an effect, for the start table."""
        enabled, without_effect = [], []
        for field in fields(self):
            value = getattr(self, field.name)
            text = f"{field.name} {_in_words(value)}"
            needed = _NEEDED_BY_SETTING.get(field.name)
            if needed and not self._is_on(needed):
                without_effect += [f"{text} has no effect without {needed}"] if value != field.default else []
            elif value != field.default or (needed and value and not isinstance(value, str)):
                enabled.append(text)
        return (", ".join(enabled) or "none") + (f" ({'; '.join(without_effect)})" if without_effect else "")

    def _is_on(self, needed: str) -> bool:
        """Return whether a setting is above 0 or, for `NAME=VALUE`, has that value."""
        setting, _, value = needed.partition("=")
        return getattr(self, setting) == value if value else getattr(self, setting) > 0

    def _range_problems(self) -> Iterator[str]:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if not lowest <= value <= highest or not math.isfinite(value):  # a comparison with NaN is False
                wanted = f"lie in {lowest} .. {highest}" if highest < math.inf else f"be {lowest} or more"
                yield f"augment.{name}={value} must {wanted}."
        for name, highest in _PAIR_MAXIMA.items():
            pair = getattr(self, name)
            if pair is not None and not _is_valid_pair(pair, highest):
                limit = f" and at most {highest}" if highest < math.inf else ""
                wanted = f"two numbers above 0{limit}, the smaller one first, e.g. [0.1,0.5]"
                yield f"augment.{name}={list(pair)} must be {wanted}."
        for name in _OWN_TRANSFORMS:
            for item in getattr(self, name):
                if not callable(item) and not (isinstance(item, Mapping) and "_target_" in item):
                    yield f"augment.{name} has {item}; each item must be a node, e.g. {{_target_: mynet.blur.Blur}}."


def _is_valid_pair(pair: Sequence[float], highest: float) -> bool:
    is_two_numbers = len(pair) == 2 and all(isinstance(number, (int, float)) for number in pair)
    return is_two_numbers and 0 < pair[0] <= pair[1] <= highest and math.isfinite(pair[1])


def _in_words(value: Any) -> str:
    """Return a value, a list, or the class names of transforms."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_words, value))}]"
    return value["_target_"].rpartition(".")[2] if isinstance(value, Mapping) else str(value)


_OWN_TRANSFORMS = ("extra", "extra_batch")
_PROBABILITIES = [f"{name}_probability" for name in ("flip", "vertical_flip", "gray", "blur", "erase")]
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_PROBABILITIES, (0, 1)),
    **dict.fromkeys(("crop_padding_px", "cutout_px", "mixup_alpha", "cutmix_alpha"), (0, math.inf)),
    **dict.fromkeys(("brightness", "contrast", "saturation"), (0, math.inf)),
    "hue": (0, 0.5),
    "rotation_degrees": (0, 180),
    "policy_num_ops": (1, NUM_OPERATIONS),
    "policy_magnitude": (0, MAX_MAGNITUDE),
}
# Largest value of settings that are a pair of numbers.
_PAIR_MAXIMA = {"random_resized_crop_scale": 1, "blur_sigma_px": math.inf, "erase_scale": 1}
