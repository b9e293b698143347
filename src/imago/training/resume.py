"""Compare the settings of a resumed run with those it was started with."""

from collections.abc import Iterator, Mapping
from typing import Any

from imago.errors import ConfigError

# What may differ when a run goes on: how it is carried out, and the Trainer's settings where they can change midway.
_FREE = (
    *("paths", "callbacks", "logger", "resume", "run_name", "extra_targets", "compile", "tta"),
    *("data.num_workers", "data.cache", "data.cache_dir"),
)
_BINDING = ("callbacks.ema",)  # a checkpoint holds two sets of weights with it, and one without
_JOINED = ("net", "optimizer", "schedule", "loss", "extra_targets")
# Where the data lies may change; that it is the same data is checked by its fingerprint.
_MAY_MOVE = ("data.root", "data.data_dir", "data.split_file", "data.list_file")
# Of the Trainer's settings, those that change how long, where and how loudly it trains. The others change the weights,
# or which of them are the best.
_FREE_IN_TRAINER = (
    *("max_epochs", "max_time", "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler"),
    *("limit_test_batches", "num_sanity_val_steps", "deterministic", "benchmark", "detect_anomaly"),
    *("enable_model_summary", "enable_progress_bar", "enable_checkpointing", "default_root_dir"),
)


def refuse_other_run(saved: Mapping[str, Any], now: Mapping[str, Any], num_epochs_done: int, is_tested: bool) -> None:
    """Refuse settings that would make it another run, or leave nothing to do.

    Args:
        saved: `config.yaml` of the run, as plain data.
        now: the settings it would go on with, likewise.
        num_epochs_done: from its summary.
        is_tested: whether the final test is done too; a run that was killed in it may do it again.

    Raises:
        ConfigError: with a line for each such setting.
    """
    before, after = dict(_leaves(saved)), dict(_leaves(now))
    changed = [key for key in before | after if before.get(key) != after.get(key) and not _is_free(key)]
    # Of a group that was swapped, its class says it all; the keys below differ as a matter of course.
    swapped = {key.removesuffix("_target_") for key in changed if key.endswith("._target_")}
    changed = [key for key in changed if key.endswith("._target_") or not key.startswith(tuple(swapped))]
    problems = [
        f"{key}={after.get(key)} would make it another run: it has {key}={before.get(key)}; start a new run for that."
        for key in changed
    ]
    max_epochs = now["trainer"]["max_epochs"]
    if not problems and (num_epochs_done > max_epochs or (num_epochs_done == max_epochs and is_tested)):
        problems.append(
            f"resume={now['resume']}: this run has done its trainer.max_epochs={num_epochs_done}; "
            f"trainer.max_epochs={2 * num_epochs_done} extends it."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _is_free(key: str) -> bool:
    if key.startswith("trainer."):
        return key.split(".")[1] in _FREE_IN_TRAINER
    if key.startswith(_BINDING):
        return False
    # `task` repeats the groups that it joins; naming a setting once is enough.
    repeated = key.startswith("task.") and key.split(".")[1] in _JOINED
    return repeated or any(key == free or key.startswith(f"{free}.") for free in (*_FREE, *_MAY_MOVE))
