"""The advice for a run that waits for data; the other results are tested with whole runs (end_to_end, logger)."""

from types import SimpleNamespace

import pytest

from imago.augment.settings import Augment
from imago.callbacks.run_summary import data_wait_advice

IN_MEMORY = SimpleNamespace(augment=Augment())
NEVER_KEPT = SimpleNamespace(is_cached=False, cache="none", augment=Augment())
TOO_LARGE = SimpleNamespace(is_cached=False, cache="auto", augment=Augment(random_resized_crop_scale=(0.3, 1.0)))


@pytest.mark.parametrize(
    ("data", "num_workers", "num_cores", "advice"),
    [
        (NEVER_KEPT, 0, 8, "data.cache=auto or data.num_workers=8"),
        (NEVER_KEPT, 8, 8, "data.cache=auto"),
        (NEVER_KEPT, 0, 0, "data.cache=auto"),  # the network computes on the CPU
        (TOO_LARGE, 8, 8, "data.decoded_px=256 data.cache=auto"),
        (IN_MEMORY, 2, 8, "data.num_workers=8"),
        (IN_MEMORY, 8, 8, "fewer augmentations or a smaller preprocess.size (both change the result)"),
    ],
)
def test_the_most_helpful_setting_comes_first(data, num_workers: int, num_cores: int, advice: str):
    assert data_wait_advice(data, num_workers, num_cores) == advice
