"""The loader: errors of workers, and workers that survive signals to all processes but not the main process."""

import multiprocessing
import os
import signal
import subprocess

import pytest
import torch

from imago.data.loader import BatchLoader, _ignore_signals_of_others
from imago.errors import ConfigError, DataError


class Batches:
    """Return each number as a batch, and an error for the number 7."""

    def __getitems__(self, number: int) -> tuple[torch.Tensor, torch.Tensor] | DataError:
        return DataError("seven") if number == 7 else (torch.full((2,), number), torch.zeros(2))


def loader(numbers, num_workers: int = 1) -> BatchLoader:
    return BatchLoader(Batches(), [*numbers], num_workers, {})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_ignores_signals_of_other_processes(number: int):
    batches = iter(loader(range(6)))
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
    assert [int(images[0]) for images, _ in batches] == list(range(1, 6))
    assert worker.is_alive()


def test_the_main_process_ends_its_worker_by_sigterm():
    own = loader(range(6))
    next(iter(own))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_worker_is_raised_in_the_main_process_and_the_loader_can_be_used_again(num_workers: int):
    own = loader([1, 2, 7, 3], num_workers)
    for _ in range(2):
        with pytest.raises(DataError, match="seven"):
            list(own)
        assert not multiprocessing.active_children()


def test_a_worker_whose_parent_is_killed_during_its_start_exits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getppid", lambda: 1)
    worker = multiprocessing.get_context("fork").Process(target=lambda: (_ignore_signals_of_others(0), os._exit(3)))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0


def _stop_the_worker_of_a_rank() -> None:
    own = loader(range(2))
    batches = iter(own)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1  # else torch waits five seconds for it to leave
    own._iterator = None


def test_a_stopped_worker_does_not_block_the_exit_of_a_forked_rank():
    rank = multiprocessing.get_context("fork").Process(target=_stop_the_worker_of_a_rank)
    rank.start()
    rank.join(30)
    is_blocked = rank.is_alive()
    rank.kill()
    assert not is_blocked


# data.loader


def test_settings_reach_the_dataloader():
    settings = {"prefetch_factor": 3, "persistent_workers": False, "multiprocessing_context": "fork", "timeout": 60}
    own = BatchLoader(Batches(), [*range(4)], 1, settings)
    assert (own.prefetch_factor, own.persistent_workers, own.timeout) == (3, False, 60)
    for _ in range(2):
        assert [int(images[0]) for images, _ in own] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "num_workers"),
    [
        ({"prefetch_factor": 3}, 0),
        ({"persistent_workers": True}, 0),
        ({"timeout": -1}, 1),
        ({"timeout": "a"}, 1),
        ({"multiprocessing_context": "thread"}, 1),
        ({"batch_size": 4}, 0),
        ({"prefetch": 4}, 0),
    ],
)
def test_a_value_that_dataloader_refuses_is_one_line(settings: dict, num_workers: int):
    (name,) = settings
    with pytest.raises(ConfigError, match=f"^data.loader.{name}=.* with data.num_workers={num_workers}: ") as caught:
        BatchLoader(Batches(), [1], num_workers, settings)
    assert "\n" not in str(caught.value)
