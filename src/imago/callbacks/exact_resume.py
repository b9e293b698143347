"""Make a resumed run draw the same random numbers, log the same curves and use the settings as typed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from imago.callbacks.train_metrics import num_steps_done
from imago.errors import ConfigError
from imago.logger.metrics_csv import MetricsCsv
from imago.logger.tensorboard import keep_file_order
from imago.runs.checkpoint import check_structure
from imago.seeding import derive_seed, seed_torch


class StepSeed(Callback):
    """Seed dropout and other random layers before every training step, from (seed, epoch, batch index, rank)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_torch(seed, pl_module.device.type)


class ResumedStateCheck(Callback):
    """Compare a checkpoint with the state of the new run before Lightning restores it.

    Raises:
        DataError: naming the file and the field that was changed after saving.
        ConfigError: if the length of the run has changed, and the schedule would keep that of its state.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":  # a test restores the weights only
            return
        saved, file = checkpoint["callbacks"], str(trainer.ckpt_path)
        parts = [part for part in trainer.callbacks if part.state_key in saved]  # type: ignore[attr-defined]
        known = [part for part in parts if type(part).__module__.startswith(("imago.", "lightning."))]
        states = {part.state_key: {k: v for k, v in part.state_dict().items() if v is not None} for part in known}
        states |= {key: {} for key in states if key == KeepSettings.__name__}  # callbacks may be added on resume
        check_structure(checkpoint, {"callbacks": states, "loops": {"fit_loop": trainer.fit_loop.state_dict()}}, file)
        for state in map(saved.get, states):  # a new run has no scores
            scores = (state.get("best_model_score"), state.get("current_score"))
            given = [score for score in (*scores, *state.get("best_k_models", {}).values()) if score is not None]
            check_structure(given, [torch.zeros(())] * len(given), file, "callbacks: scores")
        self._saved = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, file, self._saved = self._saved, str(trainer.ckpt_path), {}
        if saved:
            schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
            optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
            check_structure(saved, {"optimizer_states": optimizers, "lr_schedulers": schedules}, file)
            _check_lengths(trainer, saved["lr_schedulers"], schedules)
        for state in saved.get("optimizer_states", ()):
            for group in state["param_groups"]:
                _check_group_states({i: state["state"][i] for i in group["params"] if i in state["state"]}, file)


def _check_lengths(trainer: Trainer, saved: Sequence[Any], new: Sequence[Any]) -> None:
    """Refuse another length for a schedule that restores the old one, as torch's OneCycleLR does."""
    for config, old_state, new_state in zip(trainer.lr_scheduler_configs, saved, new, strict=True):
        if "total_steps" in new_state and old_state["total_steps"] != new_state["total_steps"]:
            raise ConfigError(
                f"schedule: {type(config.scheduler).__name__} was started for {old_state['total_steps']} optimizer "
                f"steps and cannot be resumed for {new_state['total_steps']}; resume with the same trainer.max_epochs "
                "and trainer.max_steps, or start a new run, with schedule=one_cycle if it is to be extended later."
            )


def _check_group_states(states: Mapping[int, Any], file: str) -> None:
    """Check that none of the optimizer's states of the parameters of a group, by their index, lacks fields of another.

    A new optimizer has no states to compare them with. Some have several kinds, as Muon for matrices and for vectors.
    """
    check_structure(states, dict.fromkeys(states, {}), file, "optimizer_states")
    fields = {name: value for state in states.values() for name, value in state.items()}
    kinds = sorted({frozenset(state) for state in states.values()}, key=len)
    wanted = {kind: max((other for other in kinds if kind <= other), key=len) for kind in kinds}
    for i, state in states.items():
        own = {name: value for name, value in state.items() if isinstance(value, (list, tuple, Mapping))}
        expected = {name: fields[name] for name in wanted[frozenset(state)]} | own
        check_structure(state, expected, file, f"optimizer_states.{i}")


class TruncateLogs(Callback):
    """Remove the values that an interrupted run logged after its last save, so that each step is logged once."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, MetricsCsv):
                logger.truncate(num_steps_done(trainer))
            elif isinstance(logger, TensorBoardLogger):
                keep_file_order(logger)
                # Imported here because only runs with this logger need it.
                from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

                # After the start of a session TensorBoard ignores older events from this step on.
                start = Event(session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().add_event(start, num_steps_done(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Epoch values are logged at this step. Lightning counts a step twice if it resumes between two batches.
        trainer.fit_loop.epoch_loop._batches_that_stepped = num_steps_done(trainer)


class KeepSettings(Callback):
    """Make settings of callbacks that are changed on resume take effect, although a checkpoint may hold the old ones.

    Args:
        callbacks: just built, by name.
        settings: those that the callbacks were built from, as plain data, by name; saved in each checkpoint.
    """

    def __init__(self, callbacks: Mapping[str, Callback], settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.settings = dict(settings)
        self._built = {name: (callback, dict(vars(callback))) for name, callback in callbacks.items()}
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the settings of all callbacks."""
        return self.settings

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set again what was changed; the states are loaded by now, and may hold values that were adapted since."""
        for name, (callback, values) in self._built.items():
            saved = self._saved.get(name)
            saved = saved if isinstance(saved, Mapping) else {}  # the callback was added, or the file was changed
            for key, value in self.settings[name].items():
                if key in values and (key not in saved or saved[key] != value):
                    setattr(callback, key, values[key])
