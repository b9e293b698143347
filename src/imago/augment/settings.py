"""The augmentation settings, checked: each key of `configs/augment/*.yaml` is a field here. Loads no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from imago.errors import ConfigError

POLICIES = ("randaugment", "trivialaugment")
NUM_OPERATIONS = 14  # that RandAugment draws from (Cubuk et al. 2020)
MAX_MAGNITUDE = 30  # RandAugment's scale, 0 .. 30 (Cubuk et al. 2020)

# Settings that only tune another one, and what must be on for them to have an effect.
_TUNES = {
    "policy_num_ops": "policy=randaugment",
    "policy_magnitude": "policy=randaugment",
    "blur_sigma_px": "blur_probability",
    "erase_scale": "erase_probability",
}


@dataclass(frozen=True)
class Augment:
    """What training does to images; everything is off unless a setting turns it on.

    In the order in which it happens: random resized crop, crop with padding and flips (whole batches of uint8);
    rotation, policy, gray and blur (`per_image`); colors, then after normalization erasing, cutout, MixUp and CutMix
    (`on_device`). Every draw is one per sample.

    Attributes:
        crop_padding_px: zero padding on each side before a random crop back to the old size; 0 is no crop.
        flip_probability: chance of a left-right mirror image, in [0, 1].
        random_resized_crop_scale: smallest and largest share of the image's area that a random crop keeps, in
            (0, 1]; the crop is scaled to the size of evaluation. None resizes as evaluation does. Source: Szegedy et
            al. 2015, section 6 (arXiv:1409.4842).
        vertical_flip_probability: chance of a top-bottom mirror image, in [0, 1].
        rotation_degrees: largest turn to either side, in [0, 180]; corners become black.
        policy: "randaugment" (Cubuk et al. 2020, arXiv:1909.13719), "trivialaugment" (Müller and Hutter 2021,
            arXiv:2103.10158) or None.
        policy_num_ops: operations that RandAugment applies to each image, at least 1.
        policy_magnitude: strength of RandAugment, in 0 .. 30.
        gray_probability: chance that an image loses its colors, in [0, 1].
        blur_probability: chance of a Gaussian blur, in [0, 1].
        blur_sigma_px: smallest and largest standard deviation of that blur, in pixels, above 0.
        brightness: pixels are multiplied by a factor from max(0, 1 - b) to 1 + b; b at least 0, as in torchvision's
            ColorJitter.
        contrast: likewise, for the distance of pixels to the image's mean gray.
        saturation: likewise, for the distance of pixels to their own gray.
        hue: largest turn of the color wheel to either side, in [0, 0.5] of a whole turn.
        erase_probability: chance that a rectangle becomes the mean color, in [0, 1]. Source: Zhong et al. 2020
            (arXiv:1708.04896).
        erase_scale: smallest and largest share of the area that the rectangle takes, in (0, 1].
        cutout_px: side of a square around a random pixel of every image that becomes the mean color; 0 is off. It
            may reach over the edge. Source: DeVries and Taylor 2017 (arXiv:1708.04552).
        mixup_alpha: images and labels are blended with those of another sample of the batch, by a share from
            Beta(alpha, alpha); 0 is off. Source: Zhang et al. 2018 (arXiv:1710.09412).
        cutmix_alpha: a rectangle comes from another sample, and its share of the label with it; the share left is
            from Beta(alpha, alpha); 0 is off. Source: Yun et al. 2019 (arXiv:1905.04899). With `mixup_alpha` above 0
            too, each sample draws one of the two.

    Raises:
        ConfigError: with a line for each setting out of its range.
    """

    crop_padding_px: int = 0
    flip_probability: float = 0.0
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

    def __post_init__(self) -> None:
        for name in _PAIRS:  # from a config they come as its own kind of list
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = [*self._number_problems(), *self._pair_problems()]
        if self.policy is not None and self.policy not in POLICIES:
            problems.append(f"augment.policy={self.policy} is not one of null, {', '.join(POLICIES)}.")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def is_per_image(self) -> bool:
        """Whether `per_image` has work, an image at a time: then worker processes pay off."""
        return bool(self.rotation_degrees or self.policy or self.gray_probability or self.blur_probability)

    @property
    def is_mixing(self) -> bool:
        """Whether training labels are soft, (B, K), because samples are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def describe(self) -> str:
        """Put what is on in words, and what was set but has no effect."""
        on, idle = [], []
        for field in fields(self):
            value = getattr(self, field.name)
            words = f"{field.name} {list(value) if isinstance(value, tuple) else value}"
            needed = _TUNES.get(field.name)
            if needed and not self._is_on(needed):
                idle += [f"{words} has no effect without {needed}"] if value != field.default else []
            elif needed or value != field.default:
                on.append(words)
        return (", ".join(on) or "none") + (f" ({'; '.join(idle)})" if idle else "")

    def _is_on(self, needed: str) -> bool:
        """Tell of `setting` whether it is above 0, of `setting=value` whether it has that value."""
        setting, _, value = needed.partition("=")
        return getattr(self, setting) == value if value else getattr(self, setting) > 0

    def _number_problems(self) -> Iterator[str]:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most or not math.isfinite(value):  # no number is between nan and anything
                wanted = f"lie in {least} .. {most}" if most < math.inf else f"be {least} or more"
                yield f"augment.{name}={value} must {wanted}."

    def _pair_problems(self) -> Iterator[str]:
        for name, (most, unit, example) in _PAIRS.items():
            pair = getattr(self, name)
            if pair is not None and not _is_rising(pair, most):
                yield f"augment.{name}={list(pair)} must be two {unit}, the smaller one first, e.g. {example}."


def _is_rising(pair: Sequence[float], most: float) -> bool:
    is_two_numbers = len(pair) == 2 and all(isinstance(number, (int, float)) for number in pair)
    return is_two_numbers and 0 < pair[0] <= pair[1] <= most and math.isfinite(pair[1])


_RANGES = (
    ("crop_padding_px", 0, math.inf),
    ("flip_probability", 0, 1),
    ("vertical_flip_probability", 0, 1),
    ("rotation_degrees", 0, 180),
    ("policy_num_ops", 1, NUM_OPERATIONS),
    ("policy_magnitude", 0, MAX_MAGNITUDE),
    ("gray_probability", 0, 1),
    ("blur_probability", 0, 1),
    ("brightness", 0, math.inf),
    ("contrast", 0, math.inf),
    ("saturation", 0, math.inf),
    ("hue", 0, 0.5),
    ("erase_probability", 0, 1),
    ("cutout_px", 0, math.inf),
    ("mixup_alpha", 0, math.inf),
    ("cutmix_alpha", 0, math.inf),
)
_SHARES = "shares of the area between 0 and 1"
_PAIRS = {  # the most each number can be, what they are, and an example
    "random_resized_crop_scale": (1, _SHARES, "[0.35,1.0]; null is no such crop"),
    "blur_sigma_px": (math.inf, "lengths in px above 0", "[0.1,2.0]"),
    "erase_scale": (1, _SHARES, "[0.02,0.33]"),
}
