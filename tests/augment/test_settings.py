"""The augmentation settings: ranges, descriptions, and the same keys in every option of `augment=`."""

from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from imago.augment.settings import Augment
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT

GROUP = PROJECT_ROOT / "configs" / "augment"
OPTIONS = {file.stem: OmegaConf.load(file) for file in GROUP.glob("*.yaml")}


def test_every_option_of_the_config_group_is_valid_and_changes_keys_of_none_only():
    assert sorted(OPTIONS) == ["crop_flip", "heavy", "none", "randaugment", "standard", "trivialaugment"]
    assert set(OPTIONS["none"]) == {field.name for field in fields(Augment)}
    assert Augment(**OPTIONS["none"]) == Augment()
    for name, option in OPTIONS.items():
        changes = {key: value for key, value in option.items() if key != "defaults"}
        assert name == "none" or Augment(**OPTIONS["none"] | changes) != Augment()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("flip_probability", 1.5, "must lie in 0 .. 1."),
        ("vertical_flip_probability", -0.1, "must lie in 0 .. 1."),
        ("gray_probability", float("nan"), "must lie in 0 .. 1."),
        ("blur_probability", 2, "must lie in 0 .. 1."),
        ("erase_probability", -1, "must lie in 0 .. 1."),
        ("crop_padding_px", -1, "must be 0 or more."),
        ("crop_padding_mode", "edge", "is not one of zeros, reflect."),
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


@pytest.mark.parametrize("name", ["random_resized_crop_scale", "erase_scale", "blur_sigma_px"])
@pytest.mark.parametrize("pair", [[0.5], [0.0, 1.0], [1.0, 0.35], [0.5, float("inf")], [0.1, 0.2, 0.3], ["a", "b"]])
def test_a_setting_that_is_not_a_rising_pair_is_refused(name: str, pair: list):
    limit = "" if name == "blur_sigma_px" else " and at most 1"
    with pytest.raises(ConfigError, match=rf"^augment\.{name}=\[.*\] must be two numbers above 0{limit}, the smaller"):
        Augment(**{name: pair})


def test_a_share_is_at_most_1_and_a_blur_may_be_wider():
    assert Augment(blur_sigma_px=[0.5, 1.5]).blur_sigma_px == (0.5, 1.5)
    with pytest.raises(ConfigError):
        Augment(erase_scale=[0.5, 1.5])


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        Augment(hue=1, mixup_alpha=-1, policy="x", erase_scale=[2])
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "none"),
        ({"crop_padding_px": 4, "flip_probability": 0.5}, "crop_padding_px 4, flip_probability 0.5"),
        ({"extra": [{"_target_": "mynet.noise.Noise", "sigma": 3}]}, "extra [Noise]"),
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


def test_transforms_of_single_images_and_mixing_are_recognized():
    for name in ("rotation_degrees", "gray_probability", "blur_probability"):
        assert Augment(**{name: 1}).has_single_image_transforms
    assert Augment(policy="randaugment").has_single_image_transforms
    assert not Augment(4, 0.5, [0.3, 1.0], brightness=1, erase_probability=1, mixup_alpha=1).has_single_image_transforms
    mixing = [Augment(mixup_alpha=m, cutmix_alpha=c).is_mixing for m, c in ((0, 0), (1, 0), (0, 1))]
    assert mixing == [False, True, True]
