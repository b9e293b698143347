"""Whether a run can write down what it finds out: told before it starts, not after its first epoch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from imago.errors import StorageError
from imago.resources import free_disk_bytes

if TYPE_CHECKING:
    from torch import nn

_NUM_FILES = 3  # best.ckpt, last.ckpt, and a new one beside them
_NUM_COPIES = 3  # of the weights in a checkpoint: themselves, and two moments of Adam


def check_writable(folder: Path) -> None:
    """Try to write where checkpoints go.

    Args:
        folder: of the run; made if it is not there.

    Raises:
        StorageError: if it cannot be done.
    """
    checkpoints = folder / "checkpoints"
    probe = checkpoints / f".write.{os.getpid()}"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink()
        if not any(checkpoints.iterdir()):  # whoever saves makes it; a run that only looks for a rate never does
            checkpoints.rmdir()
    except OSError as error:
        raise StorageError(
            f"{checkpoints} cannot be written ({error.strerror}); give another place with paths.log_dir=DIR."
        ) from error


def check_free_space(folder: Path, module: "nn.Module") -> None:
    """See that the checkpoints of a module fit on the disk.

    Raises:
        StorageError: if there is less free than three of them take.
    """
    in_last = folder / "checkpoints" / "last.ckpt"
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    each = in_last.stat().st_size if in_last.is_file() else _NUM_COPIES * weights
    free = free_disk_bytes(folder)
    if free < _NUM_FILES * each:
        raise StorageError(
            f"{folder} has {free:,} bytes free, and three checkpoints of this network take {_NUM_FILES * each:,}; make "
            "room, or give another place with paths.log_dir=DIR."
        )
