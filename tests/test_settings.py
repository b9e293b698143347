"""Nested settings by their names on the command line."""

import pytest

from imago.settings import flat_settings, flatten, typed_value

SETTINGS = {
    "seed": 0,
    "data": {"_target_": "imago.data.shapes.ShapesDataModule", "augment": {"hue": None}},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [0.9, 0.99]},
}


def test_settings_are_named_as_on_the_command_line():
    assert flatten({"seed": 0, "data": {"augment": {"hue": None}, "mean": [1, 2]}, "logger": {}}) == {
        "seed": 0,
        "data.augment.hue": None,
        "data.mean": [1, 2],
    }


def test_a_group_has_the_short_name_of_its_class():
    assert flat_settings(SETTINGS) == {
        "seed": 0,
        "data": "Shapes",
        "data.augment.hue": None,
        "optimizer": "AdamW",
        "optimizer.betas": "[0.9, 0.99]",
    }


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (True, "true"), (0.1, "0.1"), ("a b", "a b")])
def test_a_value_is_formatted_as_it_is_typed(value, text: str):
    assert typed_value(value) == text
