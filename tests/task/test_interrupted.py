"""A run that is interrupted and resumed ends with the weights of an uninterrupted one, with each kind of optimizer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from small_fit import QUIET, SMALL, build_data, build_task, build_trainer
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings(text)
    for text in (*QUIET, "ignore:.*before `optimizer.step", "ignore:.*exists and is not empty")
]

RUN = (*SMALL, "data=shapes", "trainer.max_epochs=4", "trainer.limit_train_batches=4", "model.dropout=0.2")
RUN += ("callbacks.last_checkpoint.every_minutes=0.0",)
CASES = {
    "plateau": ("schedule=plateau", "schedule.patience=0", "schedule.monitor=val/acc", "schedule.mode=max"),
    "averaged weights": ("callbacks=[default,ema]", "callbacks.ema.decay=0.7", "schedule=one_cycle"),
    "muon": ("optimizer=muon", "schedule=linear", "schedule.warmup_epochs=null", "schedule.warmup_steps=3"),
    "adam with clipping": (
        "optimizer=adam",
        "trainer.gradient_clip_val=0.1",
        "schedule=step",
        "schedule.every_epochs=1",
    ),
    "sgd, accumulating": ("optimizer=sgd", "trainer.accumulate_grad_batches=2", "optimizer.lr=0.01"),
    "unfreezing": (
        "callbacks=[default,backbone_finetuning]",
        "callbacks.backbone_finetuning.epochs_per_layer=1",
        "optimizer.head_lr_multiplier=5",
        "optimizer.layer_lr_decay=0.7",
    ),
    "any other": ("optimizer=torch", "optimizer._target_=torch.optim.NAdam"),
    "distillation": ("task=distillation", "task.teacher=some/run", "callbacks=[default,ema]"),
}


class Broken(Exception):
    pass


class BreakWithinAnEpoch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 3:  # after a save before batch 2
            raise Broken


class KilledBetweenEpochs(Callback):
    """Keep the checkpoint of the epoch before, as a kill does."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            shutil.copy(last, last.with_name("kept.ckpt"))
            raise Broken


def teacher() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def fit(compose: Callable, run_dir: Path, settings: tuple[str, ...], *callbacks: Callback, resume: Path | None = None):
    cfg = compose(*RUN, *settings)
    data = build_data(cfg)
    task = build_task(cfg, data, **({"teacher": teacher()} if "task=distillation" in settings else {}))
    task.steps_per_epoch = 4 // cfg.trainer.accumulate_grad_batches  # as the run counts them
    trainer = build_trainer(cfg, run_dir, *callbacks)
    trainer.fit(task, datamodule=data, ckpt_path=resume and str(resume))
    return trainer


def state(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", [BreakWithinAnEpoch, KilledBetweenEpochs])
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_is_resumed_to_the_same_weights(compose, tmp_path: Path, case: str, way: type[Callback]):
    whole = fit(compose, tmp_path / "whole", CASES[case])
    with pytest.raises(Broken):
        fit(compose, tmp_path / "broken", CASES[case], way())
    kept = tmp_path / "broken" / "checkpoints" / "kept.ckpt"
    resume = kept if kept.exists() else kept.with_name("last.ckpt")
    resumed = fit(compose, tmp_path / "broken", CASES[case], resume=resume)
    ours, theirs = state(tmp_path / "whole"), state(tmp_path / "broken")
    for part in {"state_dict", "current_model_state"} & ours.keys():
        assert [name for name in ours[part] if not torch.equal(ours[part][name], theirs[part][name])] == []
    assert resumed.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]
    assert resumed.callback_metrics["val/acc"] == whole.callback_metrics["val/acc"]


def test_the_learning_rate_of_a_plateau_schedule_falls_when_validation_does_not_improve(compose, tmp_path: Path):
    lrs: list[float] = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    settings = ("schedule=plateau", "schedule.patience=0", "schedule.monitor=val/acc", "schedule.mode=max")
    seen = fit(compose, tmp_path, (*settings, "trainer.max_epochs=3", "optimizer.lr=1e-9"), Watch())
    assert lrs == pytest.approx([1e-9, 1e-9, 0.3e-9])  # a network that does not move does not improve
    assert seen.lr_scheduler_configs[0].scheduler.num_bad_epochs == 0
