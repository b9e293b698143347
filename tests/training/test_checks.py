"""Settings that cannot work are refused before torch is imported, one line each."""

import inspect
import tomllib
from collections.abc import Callable

import pytest

from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT
from imago.training.checks import LOADER_ARGUMENTS, check_settings

BOTH_DURATIONS_SET = "schedule.warmup_epochs=0.5 schedule.warmup_steps=10: set one of the two and the other to null."


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["trainer.max_time={hours:1,foo:2}"], r"trainer.max_time={'hours': 1, 'foo': 2} must be DD:HH:MM:SS"),
        (
            ["+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging"],
            "callbacks.swa needs callbacks.swa.swa_lrs=LR; callbacks=ema averages",
        ),
        (["data.split_seed=100000000000"], "data.split_seed=100000000000 must be 0 .. 4294967295"),
        (["seed=5000000000"], "seed=5000000000 must be 0 .. 4294967295"),
        (["preprocess.std=[a,b,c]"], "preprocess.std=['a', 'b', 'c'] must be three numbers above 0"),
        (["preprocess.std=[null,1,1]"], "preprocess.std=[None, 1, 1] must be three numbers above 0"),
        (["+data.loader.prefetch_factor=abc"], "data.loader.prefetch_factor=abc must be 1 or more"),
        (["model.dropout=abc"], "model.dropout=abc must be at least 0 and below 1"),
        (["callbacks.best_checkpoint.save_top_k=-1"], "best_checkpoint.save_top_k=-1 must be 1 or more"),
        (["+trainer.overfit_batches=3", "trainer.limit_train_batches=1"], "trainer.overfit_batches already limits"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0 must be 1 or more"),
        (["trainer.limit_val_batches=-1"], "trainer.limit_val_batches=-1 must be a share up to 1.0, or a number"),
        (["schedule.warmup_steps=10"], BOTH_DURATIONS_SET),
        (["schedule=step", "schedule.every_epochs=null"], "schedule.every_epochs=null schedule.every_steps=null: set"),
        (["schedule=step", "schedule.factor=1.0"], "schedule.factor=1.0 must be between 0 and 1"),
        (["schedule=one_cycle", "schedule.start_factor=2.0"], "schedule.start_factor=2.0 must be between 0 and 1"),
        (["schedule=plateau", "schedule.monitor=val/f2"], "schedule.monitor=val/f2 is not one of train/loss, "),
        (["schedule=plateau", "schedule.monitor=train/loss"], "a schedule can only monitor validation"),
        (["schedule=plateau", "schedule.monitor=val/acc", "schedule.mode=min"], "type schedule.mode=max"),
        (["schedule=plateau", "trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 leaves no validation"),
        (["callbacks=early_stopping", "callbacks.early_stopping.mode=min"], "early_stopping.mode=max"),
        (["callbacks.best_checkpoint.monitor=val/f1", "metrics.f1=null"], "monitor=val/f1 is not one of"),
        (["callbacks.best_checkpoint.mode=up", "callbacks.best_checkpoint.monitor=val/f1"], "mode=up is not one"),
        (["optimizer=torch", "optimizer._target_=torch.optim.LBFGS"], "type channels_last=false"),
        (["+callbacks.mine=3"], "callbacks.mine=3 must be a node with _target_ and arguments, or null."),
        (["++trainer.max_steps=null"], "trainer.max_steps=null must be 1 or more, or -1 for no limit."),
        (["trainer=gpu", "trainer.deterministic=true"], "differs from run to run; type trainer.benchmark=false."),
        (["tta=mirror"], "tta=mirror is not one of none, flip, flip_shift, flip_shift_unsure"),
        (["optimizer.head_lr_multiplier=0.0"], "optimizer.head_lr_multiplier=0.0 must be greater than 0."),
        (["optimizer.layer_lr_decay=1.5"], "optimizer.layer_lr_decay=1.5 must be above 0 and at most 1."),
        (["data.batch_size=0"], "data.batch_size=0 must be 1 or more"),
        (["+data.loader.prefetch_factor=0"], "data.loader.prefetch_factor=0 must be 1 or more"),
        (["+data.loader.shuffle=true"], "data.loader.shuffle=True is not one of prefetch_factor, "),
        (["+data.loader.prefetch=4"], "data.loader.prefetch=4 is not one of prefetch_factor, "),
        (["augment.extra=[1]"], "augment.extra has 1; each item must be a node"),
        (["trainer.precision=fp8"], "trainer.precision=fp8 is not one of auto, 32-true, bf16-mixed, 16-mixed"),
        (["preprocess.interpolation=cubic"], "preprocess.interpolation=cubic is not one of bilinear, bicubic."),
        (["model.in_channels=2"], "model.in_channels=2 must be 3 (images are read as RGB) or 1 (gray)."),
        (["augment.policy=autoaugment"], "augment.policy=autoaugment is not one of null, randaugment, trivialaugment"),
        (["augment.random_resized_crop_scale=[a,b]"], "augment.random_resized_crop_scale=['a', 'b'] must be two"),
        (["loss.weight=[1,0]"], "loss.weight=[1, 0] must hold a number above 0 for each class"),
        (["loss.weight={ant: 1, bee: x}"], "loss.weight={'ant': 1, 'bee': 'x'} must hold a number above 0"),
        (["loss.weight=even"], "loss.weight=even is not one of null, balanced"),
        (["data=image_folder", "data.root=x", "data.sampler=balanced", "loss.weight=balanced"], "corrects twice"),
        (["run_name=a/b"], "run_name=a/b must be a directory name"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0 must be greater than 0; eval.py evaluates"),
        (["compile=fast"], "compile=fast is not one of true, reduce-overhead, max-autotune, "),
        (["tune=batch_size"], "tune=batch_size is not one of lr"),
        (["trainer.max_time=1h"], "trainer.max_time=1h must be DD:HH:MM:SS, e.g. 00:01:30:00"),
        (["trainer.max_time=00:00:10"], "trainer.max_time=00:00:10 must be DD:HH:MM:SS"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0 must be 1 or more"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval=0 must be above 0"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be 1 or more"),
        (["preprocess.std=[1.0,0.0,1.0]"], "preprocess.std=[1.0, 0.0, 1.0] must be three numbers above 0"),
        (["preprocess.size=64", "preprocess.resize=32"], "preprocess.resize=32 must be at least preprocess.size=64"),
        (["tune=lr", "trainer.devices=2"], "tune=lr runs in one process; type trainer.devices=1"),
        (["task=distillation", "task.teacher=x", "task.temperature=0.0"], "temperature=0.0 must be greater than 0"),
        (["task=distillation", "task.teacher=x", "task.alpha=1.5"], "task.alpha=1.5 must be between 0 and 1"),
        (
            ["task=distillation", "+model@task.teacher=resnet18", "task.teacher.weights=null"],
            "task.teacher.weights=null: a teacher needs trained weights",
        ),
        (
            ["callbacks=backbone_finetuning"],
            "callbacks.backbone_finetuning with model.weights=null would freeze random features.",
        ),
        (
            ["callbacks=backbone_finetuning", "model=resnet18", "model.freeze=backbone"],
            "model.freeze=backbone and callbacks.backbone_finetuning exclude each other",
        ),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn is not supported; use ddp or, on a CPU, ddp_fork"),
        (["trainer.strategy=ddp_notebook"], "trainer.strategy=ddp_notebook is not supported; use ddp or"),
        (["trainer.strategy=fsdp"], "ddp_fork. Less memory is needed with trainer.precision=bf16-mixed, or a smaller"),
        (["trainer.strategy=model_parallel"], "trainer.strategy=model_parallel is not supported; use ddp or"),
        (["trainer.strategy=deepspeed_stage_3"], "trainer.strategy=deepspeed_stage_3 is not supported; use ddp or"),
        (["trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}"], "FSDPStrategy'} is not supported"),
        (["++trainer.logger=false"], "trainer.logger=False is not supported: type logger=NAME"),
        (["++trainer.callbacks=[]"], "trainer.callbacks=[] is not supported: type callbacks=NAME"),
        (["++trainer.overfit_batches=-1"], "trainer.overfit_batches=-1 must be 0 or more"),
        (["++trainer.overfit_batches=1", "trainer.limit_train_batches=2"], "leave trainer.limit_train_batches out"),
        (["++trainer.fast_dev_run=true"], "trainer.fast_dev_run=True is not supported: type debug=default"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null needs trainer.max_steps=N"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1 needs trainer.max_steps=N"),
        (["++trainer.max_steps=0"], "trainer.max_steps=0 must be 1 or more, or -1 for no limit"),
        (["trainer.max_time=00:01:00:00", "++trainer.min_epochs=2"], "trainer.max_time ends a run, also before"),
        (["callbacks.best_checkpoint.dirpath=/x"], "callbacks.best_checkpoint.dirpath=/x: resume and eval.py read"),
        (["++callbacks.ema.decay=0.9"], "callbacks.ema has no _target_: type callbacks=ema too, or callbacks.ema=null"),
        (["trainer.gradient_clip_val=0.0"], "trainer.gradient_clip_val=0.0 must be greater than 0"),
        (["trainer.gradient_clip_val=1.0", "trainer.precision=16-mixed"], "needs optimizer.fused=false"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_one_line(compose: Callable, settings: list[str], text: str):
    with pytest.raises(ConfigError) as caught:
        check_settings(compose(*settings))
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_problems_are_reported_at_once(compose: Callable):
    with pytest.raises(ConfigError) as caught:
        check_settings(compose("optimizer.lr=-1", "data.batch_size=0", "trainer.max_epochs=0"))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["schedule.warmup_epochs=null", "schedule.warmup_steps=0"],
        ["schedule=plateau", "schedule.monitor=val/acc", "schedule.mode=max"],
        ["trainer.limit_val_batches=0"],
        ["callbacks=[ema,early_stopping]", "tta=flip", "tune=lr"],
        ["task=distillation", "task.teacher=x", "task.alpha=1.0"],
        ["callbacks=backbone_finetuning", "model=resnet18"],
        ["callbacks=backbone_finetuning", "~model.weights"],
        ["trainer.max_epochs=null", "++trainer.max_steps=5", "++trainer.min_steps=2", "callbacks.image_grid=null"],
    ],
)
def test_settings_that_work_pass(compose: Callable, settings: list[str]):
    check_settings(compose(*settings))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_is_one_line(compose: Callable, name: str, monkeypatch):
    monkeypatch.setattr("imago.training.checks.find_spec", lambda package: None)
    message = rf"^logger\.{name} needs the package {name}, which is not installed.*pip install -e '\.\[{name}\]'\.$"
    with pytest.raises(ConfigError, match=message):
        check_settings(compose(f"logger={name}"))
    extras = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [requirement.partition(">=")[0] for requirement in extras[name]] == [name]


def test_the_arguments_of_the_loader_are_those_of_dataloader():
    from torch.utils.data import DataLoader

    assert set(LOADER_ARGUMENTS) < set(inspect.signature(DataLoader).parameters)
