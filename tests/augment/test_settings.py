"""The augmentation settings: ranges, descriptions, and the same keys in every option of `augment=`."""

from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from imago.augment.settings import Augment
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT

CHOICES = sorted(path.stem for path in (PROJECT_ROOT / "configs" / "augment").glob("*.yaml"))


def test_the_options_of_the_config_group():
    assert CHOICES == ["crop_flip", "heavy", "none", "randaugment", "standard", "trivialaugment"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_has_every_key_and_is_valid(choice: str, compose):
    settings = OmegaConf.to_container(compose(f"augment={choice}", "augment.mixup_alpha=0.3").augment)
    assert set(settings) == {field.name for field in fields(Augment)}
    assert Augment(**settings).mixup_alpha == 0.3


def test_augment_none_equals_the_defaults_of_the_code(compose):
    assert Augment(**compose("augment=none").augment) == Augment()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("flip_probability", 1.5, "must lie in 0 .. 1."),
        ("vertical_flip_probability", -0.1, "must lie in 0 .. 1."),
        ("gray_probability", float("nan"), "must lie in 0 .. 1."),
        ("blur_probability", 2, "must lie in 0 .. 1."),
        ("erase_probability", -1, "must lie in 0 .. 1."),
        ("crop_padding_px", -1, "must be 0 or more."),
        ("cutout_px", -8, "must be 0 or more."),
        ("brightness", -0.1, "must be 0 or more."),
        ("contrast", -0.1, "must be 0 or more."),
        ("saturation", float("inf"), "must be 0 or more."),
        ("mixup_alpha", -0.2, "must be 0 or more."),
        ("cutmix_alpha", float("inf"), "must be 0 or more."),
        ("hue", 0.6, "must lie in 0 .. 0.5."),
        ("rotation_degrees", 270, "must lie in 0 .. 180."),
        ("policy_magnitude", 31, "must lie in 0 .. 30."),
        ("policy_num_ops", 0, "must lie in 1 .. 14."),
        ("policy", "autoaugment", "is not one of null, randaugment, trivialaugment."),
    ],
)
def test_a_value_out_of_range_is_reported_as_it_is_typed(name: str, value: object, text: str):
    with pytest.raises(ConfigError) as error:
        Augment(**{name: value})
    assert str(error.value) == f"augment.{name}={value} {text}"


@pytest.mark.parametrize("name", ["random_resized_crop_scale", "erase_scale"])
@pytest.mark.parametrize("scale", [[0.5], [0.0, 1.0], [1.0, 0.35], [0.5, 1.5], [0.1, 0.2, 0.3], ["a", "b"]])
def test_a_scale_that_is_not_a_pair_of_shares_is_refused(name: str, scale: list):
    with pytest.raises(ConfigError, match=rf"^augment\.{name}=\[.*\] must be two shares of the area.*\.$"):
        Augment(**{name: scale})


@pytest.mark.parametrize("sigma", [[0.0, 1.0], [2.0, 1.0], [1.0], [1.0, float("inf")]])
def test_a_blur_that_is_not_a_pair_of_lengths_is_refused(sigma: list[float]):
    with pytest.raises(ConfigError, match=r"^augment\.blur_sigma_px=\[.*\] must be two lengths in px above 0"):
        Augment(blur_sigma_px=sigma)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        Augment(hue=1, mixup_alpha=-1, policy="x", erase_scale=[2])
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "none"),
        ({"crop_padding_px": 4, "flip_probability": 0.5}, "crop_padding_px 4, flip_probability 0.5"),
        ({"erase_probability": 0.1}, "erase_probability 0.1, erase_scale [0.02, 0.33]"),
        ({"policy": "randaugment"}, "policy randaugment, policy_num_ops 2, policy_magnitude 9"),
        ({"policy_magnitude": 5}, "none (policy_magnitude 5 has no effect without policy=randaugment)"),
        (
            {"policy": "trivialaugment", "policy_num_ops": 3},
            "policy trivialaugment (policy_num_ops 3 has no effect without policy=randaugment)",
        ),
        ({"random_resized_crop_scale": OmegaConf.create([0.35, 1])}, "random_resized_crop_scale [0.35, 1]"),
    ],
)
def test_the_description_lists_what_is_on_and_what_has_no_effect(settings: dict, text: str):
    assert Augment(**settings).describe() == text


@pytest.mark.parametrize("name", ["rotation_degrees", "gray_probability", "blur_probability"])
def test_settings_of_single_images_are_recognized(name: str):
    assert Augment(**{name: 0.5}).is_per_image


def test_a_policy_is_per_image_and_crops_and_colors_are_not():
    assert Augment(policy="trivialaugment").is_per_image
    assert not Augment(4, 0.5, [0.3, 1.0], brightness=1, erase_probability=1, mixup_alpha=1).is_per_image


def test_mixing_is_on_with_either_alpha():
    assert [Augment(mixup_alpha=m, cutmix_alpha=c).is_mixing for m, c in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        *(False, True, True, True)
    ]
