"""The newest state of the run, also when the run breaks off: what `resume=` continues from."""

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
        """Keep the older file if the numbers are what broke: a state without finite weights helps nobody."""
        if not isinstance(exception, DivergedError):
            super().on_exception(trainer, pl_module, exception)
