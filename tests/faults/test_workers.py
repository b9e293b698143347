"""Worker processes that die, hang or run out of shared memory end the run with one line and the way out."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from imago.data import loader
from imago.data.datamodule import ImageDataModule
from imago.data.loader import WORKER_TIMEOUT_S
from imago.errors import DataError
from imago.runs.failure import to_user_error


class Bad(Dataset):
    """Call `act` in the process that reads the second image."""

    def __init__(self, act) -> None:
        self.act = act

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            self.act()
        return torch.zeros(1)


def error_of(act, **settings) -> BaseException:
    """Return the error that the user gets."""
    try:
        list(DataLoader(Bad(act), num_workers=1, **settings))
    except (RuntimeError, OSError) as error:
        return to_user_error(error)
    raise AssertionError("no error was raised")


@pytest.mark.slow
def test_a_killed_worker_names_the_setting_that_needs_less_memory():
    error = error_of(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert isinstance(error, DataError)
    assert "probably out of memory: data.num_workers=0 uses none" in str(error)
    assert "\n" not in str(error)


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run():
    error = error_of(lambda: time.sleep(60), timeout=1)
    assert isinstance(error, DataError)
    assert "no batch came for 1 s" in str(error)
    assert "data.num_workers=0" in str(error)


def test_every_loader_with_workers_has_a_time_limit(set_up, fill, tmp_path: Path):
    data: ImageDataModule = set_up(fill(tmp_path / "images"), num_workers=1)
    assert data.train_dataloader().timeout == WORKER_TIMEOUT_S == 300
    data.num_workers = 0
    assert data.train_dataloader().timeout == 0


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to open shared memory object </torch_1> in read-write mode: No space left on device (28)",
    ],
)
def test_an_error_of_shared_memory_names_both_ways_out(text: str):
    error = to_user_error(RuntimeError(text))
    assert isinstance(error, DataError)
    assert "/dev/shm is too small" in str(error)
    assert "data.num_workers=0" in str(error)
    assert "--shm-size" in str(error)


class NoRoom:
    """A batch that does not fit into /dev/shm."""

    def share_memory_(self) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


class Batches(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitems__(self, key: list[int]) -> list[NoRoom]:
        return [NoRoom()]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_too_little_shared_memory_ends_the_run_at_once():
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Batches(), num_workers=1, collate_fn=loader._move_to_shared_memory, timeout=50))
    text = str(to_user_error(caught.value))
    assert text.startswith("/dev/shm is too small for the batches of the loader workers (unable to allocate")
    assert "Traceback" not in text


def test_errors_that_do_not_come_from_loader_workers_are_not_changed():
    for error in (RuntimeError("shapes do not match"), ValueError("shared memory"), KeyError("x")):
        assert to_user_error(error) is error
