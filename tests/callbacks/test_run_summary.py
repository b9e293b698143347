"""The advice for a run that waits for data; the other results are tested with whole runs (end_to_end, logger)."""

import pytest

from imago.augment.settings import Augment
from imago.callbacks.run_summary import data_wait_advice


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_a_run_that_waits_little_gets_no_advice(share: float):
    assert data_wait_advice(share, "none", Augment(policy="randaugment"), num_workers=0, num_cores=8) is None


@pytest.mark.parametrize(
    ("cache", "augment", "num_workers", "advice"),
    [
        ("none", {}, 0, "data.cache=auto or data.num_workers=8"),
        ("none", {}, 8, "data.cache=auto"),
        ("auto", {}, 2, "data.num_workers=8"),
        ("auto", {"random_resized_crop_scale": [0.3, 1.0]}, 8, "data.decoded_px=256 data.cache=auto"),
        (None, {}, 2, "data.num_workers=8"),
        (None, {}, 0, "data.num_workers=8"),
        (
            None,
            {"policy": "trivialaugment"},
            0,
            "data.num_workers=8 or augment.policy=null (changes the training)",
        ),
        (
            None,
            {"policy": "randaugment", "rotation_degrees": 10.0, "hue": 0.1},
            8,
            "augment.policy=null augment.rotation_degrees=0.0 (changes the training)",
        ),
        (
            None,
            {"brightness": 0.2, "hue": 0.1},
            8,
            "augment.hue=0.0 augment.brightness=0.0 (changes the training)",
        ),
        (None, {"flip_probability": 0.5}, 8, "a lower preprocess.size (changes the training)"),
    ],
)
def test_the_most_helpful_setting_comes_first(cache: str | None, augment: dict, num_workers: int, advice: str):
    assert data_wait_advice(0.11, cache, Augment(**augment), num_workers, num_cores=8) == advice


def test_if_the_network_computes_on_the_cpu_no_workers_are_advised():
    assert data_wait_advice(0.5, "none", Augment(), num_workers=0, num_cores=0) == "data.cache=auto"
