"""Checkpoint files: written whole or not at all, read only after they have proven sound, and never unpickled freely."""

import glob
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from imago.errors import ConfigError, DataError, DivergedError, StorageError
from imago.resources import free_disk_bytes

SCHEMA = 1  # raised when what is in a checkpoint changes so that older code would misread it

# What training changes; callbacks may hold an infinite score as a start.
_TRAINED = ("state_dict", "optimizer_states", "current_model_state")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reader and writer, with a temporary file in the same folder, fsync and rename.

    Lightning itself writes to TMPDIR and moves; where that is another file system, a kill in the middle destroys the
    old checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` so that `path` holds the old file or the new one, never a part of either.

        Raises:
            DivergedError: if a weight, or what an optimizer has summed up, is not finite; the older file is kept.
            StorageError: if it cannot be written; likewise.
        """
        # Lightning also hands weights from a forked or spawned rank to the main process through here, bare.
        _refuse_non_finite(checkpoint, Path(path))
        if not _is_hand_over(path):
            checkpoint = {"imago": {"schema": SCHEMA, "torch": str(torch.__version__)}} | checkpoint
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written ({error.strerror or error}); {free_disk_bytes(Path(path)):,} bytes are free "
                "there. The older checkpoint is kept: make room, then go on with resume=RUN."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read `path` as `read_checkpoint` does; plain data and tensors only, whatever `weights_only` says."""
        if _is_hand_over(path):
            return torch.load(path, map_location=map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Save to a temporary neighbor, bring it to the disk, then give it its name.

    Raises:
        OSError: if it cannot be written; the old file is untouched and no part is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        left_over.unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            _save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)


class _Sink:
    """Passes on to a file what torch writes, and keeps what the system says about it: torch does not."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(checkpoint: Mapping[str, Any], file: BinaryIO) -> None:
    sink = _Sink(file)
    try:
        torch.save(checkpoint, sink)  # type: ignore[arg-type]  # it needs no more of a file than this
    except RuntimeError as error:
        raise sink.error or error from None


def read_checkpoint(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        DataError: if it is missing, truncated, damaged (the zip has checksums of its contents), not written by this
            project, or holds anything but plain data and tensors.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; a run keeps its checkpoints in RUN/checkpoints/best.ckpt and last.ckpt."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (
        zlib.error,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ) as error:
        raise DataError(f"{path} is truncated or no checkpoint ({path.stat().st_size} bytes).") from error
    if damaged:
        raise DataError(
            f"{path} is damaged: the checksum of {damaged} does not match; use the other checkpoint of the run."
        )
    return _load(path, map_location)


def _is_hand_over(path: Any) -> bool:
    return Path(path).name == ".temp.ckpt"  # Lightning's name, in launchers/multiprocessing.py


def check_plain(settings: Mapping[str, Any]) -> None:
    """Prove that hyper-parameters will load again, before a run spends hours on a checkpoint that does not.

    Raises:
        ConfigError: naming the first that is not plain data or tensors.
    """
    for name, value in settings.items():
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"task: its hyper-parameter {name}={value!r} is a {type(value).__name__} or holds something that no "
                "checkpoint can give back safely; numbers, text, lists, dicts and tensors are fine."
            ) from error


def _refuse_non_finite(checkpoint: Mapping[str, Any], path: Path) -> None:
    parts = [part for name, part in checkpoint.items() if name in _TRAINED] or [checkpoint]
    for name, value in _tensors(parts):
        # The sum of others is never finite, that of finite numbers may overflow; it costs a tenth of a look at each.
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            raise DivergedError(
                f"the weights are no longer finite ({name}), so {path} was not written over; lower "
                f"optimizer.lr or set trainer.gradient_clip_val=1.0."
            )


def _tensors(node: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _tensors(value, str(key))
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _tensors(value, name)


def _load(path: Path, map_location: Any | None) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise DataError(
            f"{path} holds more than plain data and tensors{what}; it is refused, as it could run code."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    origin = checkpoint.get("imago") if isinstance(checkpoint, dict) else None
    if not isinstance(origin, dict) or not isinstance(origin.get("schema"), int):
        raise DataError(f"{path} is not a checkpoint of this project.")
    if origin["schema"] > SCHEMA:
        raise DataError(f"{path} was written by a later version of imago; bring this checkout up to date.")
    return checkpoint
