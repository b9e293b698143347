"""The random numbers of a training step depend only on seed, epoch, batch index and rank."""

from types import SimpleNamespace

import pytest
import torch

from imago.callbacks.step_seed import StepSeed

HERE = {"seed": 1, "epoch": 2, "batch": 3, "rank": 0}


def draws(seed: int, epoch: int, batch: int, rank: int) -> torch.Tensor:
    """What a network would draw in this step."""
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    StepSeed(seed).on_train_batch_start(trainer, None, None, batch)
    return torch.rand(8)


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    with torch.random.fork_rng():
        yield


def test_the_same_step_draws_the_same_whatever_came_before():
    first = draws(**HERE)
    torch.rand(1000)
    torch.manual_seed(5)
    assert torch.equal(draws(**HERE), first)


@pytest.mark.parametrize("part", HERE)
def test_another_seed_epoch_batch_or_rank_draws_something_else(part: str):
    assert not torch.equal(draws(**HERE), draws(**HERE | {part: HERE[part] + 1}))


def test_epoch_and_batch_are_not_mistaken_for_each_other():
    assert not torch.equal(draws(1, 2, 3, 0), draws(1, 3, 2, 0))
