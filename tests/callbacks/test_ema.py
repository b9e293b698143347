"""The averaged weights: computed by hand, validated, saved and tested; `test_checkpoints.py` resumes them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from small_fit import QUIET, SMALL, build_data, build_task, build_trainer
from torch import nn

from imago.callbacks.ema import Ema
from imago.errors import ConfigError

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

AVERAGED = (*SMALL, "data=shapes", "callbacks=ema", "callbacks.ema.decay=0.2", "trainer.limit_train_batches=4")


class Recorded(Callback):
    """Record the trained weights after each step and the validated ones of each epoch."""

    def __init__(self) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})


class Normed(nn.Sequential):
    """A network with BatchNorm."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )


@pytest.fixture(scope="module")
def averaged(compose, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with its final test: directory, records, data, task and the result of the test."""
    cfg, run_dir, seen = compose(*AVERAGED), tmp_path_factory.mktemp("averaged"), Recorded()
    data = build_data(cfg)
    task = build_task(cfg, data)
    torch.manual_seed(0)
    task.net = Normed(10, 32)
    trainer = build_trainer(cfg, run_dir, seen)
    trainer.fit(task, datamodule=data)
    best = str(run_dir / "checkpoints" / "best.ckpt")
    validated = seen.validated[-1]
    (result,) = trainer.test(task, datamodule=data, ckpt_path=best, verbose=False)
    return SimpleNamespace(run_dir=run_dir, seen=seen, validated=validated, data=data, task=task, result=result)


def saved(run: Path, name: str, key: str = "state_dict") -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)[key]
    return {name.removeprefix("net."): value for name, value in state.items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def averaged_by_hand(trained: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the average of the weights after each of 4 steps."""
    first, *others = trained
    averaged_shares = 2 / 11, 0.2, 0.2  # of decay 0.2: 2 / 11 is less, 3 / 12 and 4 / 13 are more
    expected = {name: value.clone() for name, value in first.items()}
    for kept, state in zip(averaged_shares, others, strict=True):
        for name, value in state.items():
            expected[name] = kept * expected[name] + (1 - kept) * value if value.is_floating_point() else value
    return expected


def test_the_average_is_the_one_computed_by_hand_and_counts_stay_integers(averaged):
    expected = averaged_by_hand(averaged.seen.trained)
    last = saved(averaged.run_dir, "last")
    assert last["1.num_batches_tracked"] == 4
    for name, value in expected.items():
        torch.testing.assert_close(last[name], value)
    assert_equal(saved(averaged.run_dir, "last", "current_model_state"), averaged.seen.trained[-1])


def test_the_averaged_weights_are_validated_saved_as_the_best_and_tested(averaged):
    best = saved(averaged.run_dir, "best")
    assert_equal(best, averaged.validated)
    assert not torch.equal(best["4.weight"], averaged.seen.trained[-1]["4.weight"])
    assert_equal(dict(averaged.task.net.state_dict()), best)


@pytest.mark.parametrize("decay", [-0.5, 1.0, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay: float):
    with pytest.raises(ConfigError, match=f"callbacks.ema.decay={decay} must be"):
        Ema(decay)


@pytest.mark.slow
def test_the_weights_of_the_first_steps_leave_a_short_average(compose, tmp_path):
    """78 steps with decay 0.999: a plain average would hold 92.6 % of the first weights."""
    settings = ("callbacks=ema", "trainer.limit_train_batches=10", "trainer.max_epochs=8", "++trainer.max_steps=78")
    cfg, seen = compose(*SMALL, "data=shapes", *settings), Recorded()
    data = build_data(cfg)
    task = build_task(cfg, data)
    build_trainer(cfg, tmp_path, seen).fit(task, datamodule=data)
    shares = [min(0.999, (1 + step) / (10 + step)) for step in range(78)]
    held = [1.0] * 78  # share of each step in the average after the last one
    for step in range(78):
        held[step] = (1 - shares[step] if step else 1.0) * torch.tensor(shares[step + 1 :]).double().prod().item()
    assert sum(held) == pytest.approx(1)
    name = next(iter(seen.trained[0]))
    expected = sum(share * state[name].double() for share, state in zip(held, seen.trained, strict=True))
    torch.testing.assert_close(saved(tmp_path, "last")[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert sum(held[:10]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Manual", "RawSteps"])
def test_with_manual_optimization_the_average_counts_batches(compose, tmp_path: Path, name: str):
    cfg, seen = compose(*AVERAGED, f"task._target_=own_tasks.{name}"), Recorded()
    data = build_data(cfg)
    build_trainer(cfg, tmp_path, seen).fit(build_task(cfg, data), datamodule=data)
    for key, value in averaged_by_hand(seen.trained).items():
        torch.testing.assert_close(saved(tmp_path, "last")[key], value)
