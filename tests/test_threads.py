"""Preparing a batch starts no thread and restores the number of threads."""

import os

import pytest
import torch
from warm_python import warm_imago

from imago.threads import one_intraop_thread


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_one_inside_and_restored_also_after_an_error(three_threads):
    with pytest.raises(ValueError, match="1 thread"), one_intraop_thread():
        raise ValueError(f"{torch.get_num_threads()} thread")
    assert torch.get_num_threads() == 3


COUNT_THREADS = """
import os
import numpy as np, torch
from imago.augment.settings import Augment
from imago.data.dataset import ArrayDataset, LabeledArray
from imago.data.sampling import BatchIndices

torch.set_num_threads(4)
images = LabeledArray(np.zeros((32, 3, 96, 96), np.uint8), np.zeros(32, np.int64), ("",) * 32)
before = len(os.listdir("/proc/self/task"))
for settings in ({"crop_padding_px": 4}, {"random_resized_crop_scale": (0.35, 1.0)}, {"blur_probability": 1.0}):
    dataset = ArrayDataset(images, Augment(flip_probability=0.5, **settings))
    dataset.__getitems__(BatchIndices(0, np.arange(32)))
print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
def test_preparing_a_batch_starts_no_thread():
    done = warm_imago().run("-c", COUNT_THREADS, OMP_NUM_THREADS="4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "4"]
