"""The newest state of the run, also when the run breaks off: what `resume=` continues from."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.errors import DivergedError


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after every epoch and when an exception ends the run.

    It is a callback of its own, because `save_last` of a monitoring one moves only when the best does.

    Args:
        dirpath: folder of the file.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(dirpath, filename="last", save_on_exception=True, enable_version_counter=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step.

        Not if the numbers are what broke: a state without finite weights helps nobody. And with several ranks only from
        rank 0 and without its waiting for the others: they may be gone, or in the middle of a step.
        """
        if isinstance(exception, DivergedError):
            return
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
        elif trainer.is_global_zero and trainer.global_step > 0:
            state = trainer._checkpoint_connector.dump_checkpoint(False)  # False: with the optimizer
            trainer.strategy.save_checkpoint(state, Path(str(self.dirpath)) / "last.ckpt")
