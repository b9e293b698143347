"""Every YAML composes, opens with its purpose, and has only keys that its target takes."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from imago.data.datamodule import ImageDataModule
from imago.data.splitting import SplitPlan
from imago.paths import PROJECT_ROOT

CONFIGS = PROJECT_ROOT / "configs"
YAMLS = sorted(path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml"))
OPTIONS = [path for path in YAMLS if len(path.parts) == 2 and path.parts[0] != "hydra"]
# Keys that `imago.task.optimization` and `imago.model.adapt` read; the optimizer and the network do not get them.
_APPLIED = {"weights", "freeze", "in_channels"}
READ_BY_THE_TASK = {"optimizer": {"head_lr_multiplier", "layer_lr_decay"}, "model": _APPLIED, "net": _APPLIED}
# Arguments that are added when the target is built.
ADDED = {
    "model": {"num_classes", "image_size"},
    "task": {"class_names", "preprocess", "class_counts"},
    "loss": {"class_counts"},
    "optimizer": {"params"},
    "schedule": {"optimizer", "total_steps", "steps_per_epoch"},
}


def targets(node, path: str = ""):
    """Iterate over the nodes with a `_target_` and their key paths."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))


def accepted_keys(target: type) -> set[str]:
    """Return the keyword arguments of a class, and of its base classes if it has `**kwargs`."""
    keys: set[str] = set()
    for owner in target.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        keys |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    # A data module passes its other settings to SplitPlan.
    return keys | ({field.name for field in fields(SplitPlan)} if issubclass(target, ImageDataModule) else set())


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_composes_and_every_key_is_an_argument_of_its_target(option: Path, compose):
    group, name = option.parts
    cfg: DictConfig = compose(f"{group}={name}") if group != "paths" else compose()
    composed = OmegaConf.to_container(cfg, resolve=True)
    node = composed if group in ("experiment", "debug", "paths") else {group: composed[group]}
    for path, settings in targets(node):
        if settings["_target_"] == "???":  # typed by the user
            continue
        target = get_class(settings["_target_"])
        keys = {key for key in settings if not key.startswith("_")} - READ_BY_THE_TASK.get(path.split(".")[-1], set())
        assert keys - accepted_keys(target) == set(), f"{path}: {settings['_target_']}"
        assert not ADDED.get(path, set()) & keys, f"{path} must not set what is added"


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_yaml_opens_with_its_purpose(path: Path):
    lines = (CONFIGS / path).with_suffix(".yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert len(first) > 20


def test_the_printed_settings_have_the_run_directory(compose):
    cfg = OmegaConf.to_container(compose("run_name=x", "debug=limit", "tags=[a]"), resolve=True)
    run_dir = f"{PROJECT_ROOT}/logs/train/x"
    written = (cfg["callbacks"]["best_checkpoint"]["dirpath"], cfg["logger"]["csv"]["path"], cfg["paths"]["run_dir"])
    assert written == (f"{run_dir}/checkpoints", f"{run_dir}/metrics.csv", run_dir)


def test_callbacks_none_keeps_what_saving_and_resuming_need(compose):
    callbacks = compose("callbacks=none").callbacks
    kept = {name for name, settings in callbacks.items() if settings is not None}
    assert kept == {"best_checkpoint", "last_checkpoint", "step_seed", "truncate_logs", "progress"}
    assert compose("callbacks=rich_progress_bar").callbacks.progress is None


def test_another_network_keeps_the_optimizer(compose):
    plain, other = compose("optimizer.lr=0.5"), compose("optimizer.lr=0.5", "model=simple_cnn", "model.dropout=0.5")
    assert plain.optimizer == other.optimizer
    assert other.task.net.dropout == 0.5


def test_the_command_line_overrides_an_experiment_which_overrides_the_defaults(compose):
    assert compose("experiment=quickstart").data._target_.endswith("ShapesDataModule")
    assert compose("experiment=quickstart", "trainer.max_epochs=3").trainer.max_epochs == 3


@pytest.mark.parametrize("option", [path.name for path in OPTIONS if path.parts[0] == "data"])
def test_every_dataset_composes_for_an_evaluation(option: str, compose):
    cfg = compose("run=logs/latest", f"data={option}", config_name="eval")
    assert {"batch_size", "num_workers"} <= OmegaConf.to_container(cfg.data, resolve=True).keys()
    assert "data" not in compose(config_name="eval")


@pytest.mark.parametrize(
    ("command", "code"),
    [("eval", "inference/evaluate"), ("predict", "inference/predict"), ("report", "analysis/report")],
)
def test_every_key_of_a_command_is_read_by_it(command: str, code: str, compose):
    text = (PROJECT_ROOT / "src" / "imago" / f"{code}.py").read_text()
    read_elsewhere = {"paths", "augment", "seed"}  # by the dataset and by Hydra
    unread = [key for key in compose(config_name=command) if f"cfg.{key}" not in text and f'"{key}"' not in text]
    assert set(unread) <= read_elsewhere
