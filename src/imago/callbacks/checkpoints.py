"""Save the state with the best validation score and the newest one."""

import logging
from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from imago.callbacks.stopping import TimeLimit, has_epoch_ended_early
from imago.callbacks.train_metrics import num_steps_done
from imago.errors import ConfigError, DataError
from imago.runs.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


class _StepCheckpoint(ModelCheckpoint):
    """Save at most once per step, also of modules that step their optimizers without the Trainer, which counts none."""

    _saved_step = 0

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        if num_steps_done(trainer) != self._saved_step:
            self._last_global_step_saved = -1  # Lightning's own comparison is with `trainer.global_step`
        return super()._should_skip_saving_checkpoint(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saved_step = num_steps_done(trainer)
        super()._save_checkpoint(trainer, filepath)


class BestCheckpoint(_StepCheckpoint):
    """Save `best.ckpt`, also when the run directory was moved or copied before it is resumed.

    If `monitor` is never logged, this is reported once, and nothing is saved.

    Args:
        dirpath: directory of `best.ckpt`.
        monitor: name of the logged value to compare.
        mode: "max" or "min": whether larger or smaller values are better.
        save_top_k: above 1: `top_checkpoints` also saves this many of the best states, under other names.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str, save_top_k: int = 1) -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.best_metrics: dict[str, float] = {}  # everything that was logged when `best.ckpt` was saved
        self._has_warned = False
        # A second callback, which the Trainer gets too.
        self.top_checkpoints = TopCheckpoints(dirpath, monitor, mode, save_top_k) if save_top_k > 1 else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that validation within an epoch falls between optimizer steps: a checkpoint stores no gradients.

        Raises:
            ConfigError: if `trainer.val_check_interval` falls within an optimizer step.
        """
        super().on_train_start(trainer, pl_module)
        num_batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
        interval: Any = trainer.val_check_batch
        if not trainer.enable_validation or interval in (None, float("inf")):
            return
        if trainer.check_val_every_n_epoch is None:  # the batches are counted over all epochs
            is_within_step = interval % accumulate or num_batches % accumulate
        else:
            is_within_step = interval != num_batches and interval % accumulate
        if is_within_step:
            raise ConfigError(
                f"trainer.val_check_interval={trainer.val_check_interval} validates after {interval} batches, within "
                f"an optimizer step of trainer.accumulate_grad_batches={accumulate} batches, and best.ckpt could not "
                f"be resumed; use a multiple of {accumulate} batches."
            )

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        """Skip an epoch that `trainer.max_time` ended early, unless there is no best checkpoint yet."""
        is_skipped = has_epoch_ended_early(trainer, (TimeLimit,)) and bool(self.best_model_path)
        return is_skipped or super()._should_skip_saving_checkpoint(trainer)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        elif trainer.enable_validation and not self._has_warned:
            self._has_warned = True
            log.warning(
                "callbacks.best_checkpoint.monitor=%s is not logged, so best.ckpt is not saved and the last weights "
                "are tested; logged are %s",
                self.monitor,
                ", ".join(sorted(trainer.callback_metrics)) or "no values",
            )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_metrics": self.best_metrics}

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.best_metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        has_last = any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks)
        if has_epoch_ended_early(trainer) and has_last:
            _save_with_scores(trainer, Path(filepath))
        else:
            super()._save_checkpoint(trainer, filepath)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; Lightning does not if the directory has another path than when it was saved."""
        restored: dict[str, Any] = {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            best = str(Path(str(self.dirpath)) / "best.ckpt")
            try:
                read_checkpoint(Path(best))
            except DataError as error:
                log.warning("%s The best epoch is chosen from the remaining epochs.", error)
                return
            restored |= {"best_model_path": best, "kth_best_model_path": best}
            restored["best_k_models"] = {best: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | restored)
        self.best_metrics = dict(state_dict.get("best_metrics", {}))


class LastCheckpoint(_StepCheckpoint):
    """Save `last.ckpt` after every epoch and, within a long one, between two optimizer steps.

    Only from these states does Lightning resume to the weights of an uninterrupted run. Therefore an exception saves
    nothing, and a signal is saved at the next such point, see `StopOnSignal`.

    This is a separate callback because `save_last` of a `ModelCheckpoint` with `monitor` writes only when the best
    score improves.

    Args:
        dirpath: directory of `last.ckpt`.
        every_minutes: minutes between two saves within an epoch, the most that a killed process loses; 15 is our
            own choice.
    """

    def __init__(self, dirpath: str, every_minutes: float = 15.0) -> None:
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_minutes = every_minutes
        self._saved_at_s = monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A state that was saved before a batch counts that batch as fetched, and the resumed run fetches it again.
        # With check_val_every_n_epoch=null Lightning validates by this count.
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        batches.ready = batches.processed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at_s = monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        is_due = monotonic() - self._saved_at_s > 60 * self.every_minutes
        if is_due and batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._saved_at_s = monotonic()
            self.save_now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save when a limit ends an epoch early, before Lightning counts the epoch as completed."""
        if has_epoch_ended_early(trainer):
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if has_epoch_ended_early(trainer):
            _save_with_scores(trainer, Path(str(self.dirpath)) / "last.ckpt")

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return has_epoch_ended_early(trainer) or super()._should_skip_saving_checkpoint(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save in rank 0, without waiting for the other ranks; do nothing before the first optimizer step."""
        if trainer.is_global_zero and num_steps_done(trainer) > 0:
            state = trainer._checkpoint_connector.dump_checkpoint(False)  # all, not only the weights
            trainer.strategy.save_checkpoint(state, Path(str(self.dirpath)) / "last.ckpt")


def _save_with_scores(trainer: Trainer, file: Path) -> None:
    """Save `last.ckpt` of an epoch that ended early again, or as `file`, with the scores of the validation after it.

    It was saved before, as Lightning then counts the epoch as completed. The other states are those before the
    validation, so that the epoch is continued as in an uninterrupted run.
    """
    if trainer.is_global_zero:
        state = read_checkpoint(file.with_name("last.ckpt"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (ModelCheckpoint, EarlyStopping)):
                state["callbacks"][callback.state_key] = callback.state_dict()
        trainer.strategy.save_checkpoint(state, file)


class TopCheckpoints(_StepCheckpoint):
    """Save the states with the best validation scores, such as `epoch=3-val_acc=0.9120.ckpt`. Arguments: see above."""

    def __init__(self, dirpath: str, monitor: str, mode: str, save_top_k: int) -> None:
        name = f"epoch={{epoch}}-{monitor.replace('/', '_')}={{{monitor}:.4f}}"
        settings: Any = {"save_top_k": save_top_k, "auto_insert_metric_name": False}
        super().__init__(dirpath, filename=name, monitor=monitor, mode=mode, **settings)

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return has_epoch_ended_early(trainer) or super()._should_skip_saving_checkpoint(trainer)
