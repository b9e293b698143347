"""Write checkpoint files atomically, and read them only if they are intact and hold nothing but plain data."""

import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from imago.errors import ConfigError, DataError, DivergedError, StorageError
from imago.files import atomic_write, fsync_directory, remove_partial_files
from imago.paths import checkpoint_file
from imago.resources import free_disk_bytes
from imago.text import first_line

SCHEMA_VERSION = 2  # increased when the contents change; 1 is the first edition
_FIRST_EDITION_COMMIT = "7986d1c"

# The entries that training changes; the state of a callback may hold an infinite score as its start value.
_TRAINED_KEYS = ("state_dict", "optimizer_states", "current_model_state")
_ZIP_START = b"PK\x03\x04"
# What torch's reader of plain data raises for data that no `torch.save` has written.
_DAMAGED_PICKLE = (RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, AssertionError)
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)
_KINDS = ((int, float), str, torch.Tensor, (list, tuple), Mapping)  # of the values in a checkpoint
_NUM_CHECKPOINTS = 3  # best.ckpt, last.ckpt and the one that is being written
_NUM_WEIGHT_COPIES = 3  # of the weights in a checkpoint: the weights and the two moments of Adam


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, with atomic writes and verified reads.

    Lightning itself writes to TMPDIR and moves the file. If that is another file system, a kill during the move
    destroys the old checkpoint.

    Each checkpoint has the name of the task's class, and not the hyperparameters `left_out`, which are no plain data.
    `on_saved` is called after each save.
    """

    def __init__(
        self, task: str | None = None, left_out: Sequence[str] = (), on_saved: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.task = task
        self.left_out = left_out
        self.on_saved = on_saved

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` so that `path` holds either the old file or the complete new one.

        Raises:
            DivergedError: if a weight or an optimizer state is not finite; the old file is kept.
            StorageError: if the file cannot be written; the old file is kept.
        """
        _check_finite(checkpoint, path)
        if not _is_rank_result(path):
            header = {"schema": SCHEMA_VERSION, "torch": str(torch.__version__), "task": self.task}
            checkpoint = {"imago": header} | checkpoint
            saved = checkpoint.get("hyper_parameters", {})
            checkpoint["hyper_parameters"] = {key: saved[key] for key in saved if key not in self.left_out}
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written ({error.strerror or error}); {free_disk_bytes(Path(path)):,} bytes are free "
                "there. The old checkpoint is kept: free some space, then continue with resume=RUN."
            ) from error
        self.on_saved()

    def load_checkpoint(self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = None) -> Any:
        """Read `path` as `read_checkpoint` does: plain data and tensors only, whatever `weights_only` is.

        Tensors come to the CPU, from where Lightning copies them: the device that saved them may not exist here.
        """
        if _is_rank_result(path):
            return torch.load(path, map_location=map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)


def _is_rank_result(path: Any) -> bool:
    """Return whether Lightning passes the bare weights of a forked rank to the main process in this file."""
    return Path(path).name == ".temp.ckpt"  # the name in lightning/pytorch/strategies/launchers/multiprocessing.py


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Save to a temporary file in the same directory, fsync it and rename it.

    Raises:
        OSError: if it cannot be written; the old file is unchanged and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial_files(path.parent, f"{path.name}.")
    with atomic_write(path, "wb") as file:
        writer = _ErrorKeepingFile(file)
        try:
            torch.save(checkpoint, writer)  # type: ignore[arg-type]  # it calls write and flush only
        except RuntimeError as error:
            raise writer.error or error from None
    fsync_directory(path.parent)


class _ErrorKeepingFile:
    """A file that keeps the `OSError` of a failed write: `torch.save` raises a RuntimeError without the cause."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.flush = file.flush
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


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
        with zipfile.ZipFile(path) as archive, path.open("rb") as content:
            if content.read(len(_ZIP_START)) != _ZIP_START:  # zipfile accepts other bytes before it
                raise zipfile.BadZipFile
            damaged = archive.testzip()
    except _DAMAGED_ZIP as error:
        raise DataError(
            f"{path} is truncated or not a checkpoint ({path.stat().st_size} bytes); use another checkpoint of the run."
        ) from error
    if damaged:
        raise DataError(
            f"{path} is damaged: the checksum of {damaged} does not match; use the other checkpoint of the run."
        )
    checkpoint = _load(path, map_location)
    header = checkpoint.get("imago") if isinstance(checkpoint, dict) else None
    schema = header.get("schema") if isinstance(header, dict) else None
    if not isinstance(schema, int):
        raise DataError(
            f"{path} is not a checkpoint of this project; use one of a run, e.g. RUN/checkpoints/best.ckpt."
        )
    if schema < SCHEMA_VERSION:
        raise DataError(f"{path} was written by the first edition of imago; commit {_FIRST_EDITION_COMMIT} reads it.")
    if schema > SCHEMA_VERSION:
        raise DataError(f"{path} was written by a later version of imago; update this checkout.")
    return checkpoint


def _load(path: Path, map_location: Any | None) -> Any:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        target = f" ({match[1]})" if match else ""
        raise DataError(
            f"{path} holds more than plain data and tensors{target}; it is refused, as it could run code."
        ) from error
    except _DAMAGED_PICKLE as error:
        raise DataError(f"{path} cannot be loaded ({first_line(error)}); use another checkpoint of the run.") from error


def check_structure(saved: Any, example: Any, path: Path | str, key: str = "") -> None:
    """Check that a part of a checkpoint has the fields of an example, and values of the same kinds.

    Numbers, texts, tensors, lists and mappings are kinds. None stands for None or a number, and an empty list or
    mapping for one with any content; other fields than those of the example are accepted.

    Raises:
        DataError: naming the file and the first field, whose dotted name is below `key`.
    """
    is_list, is_mapping = isinstance(example, (list, tuple)), isinstance(example, Mapping)
    kind = next((kind for kind in _KINDS if isinstance(example, kind)), (int, float, type(None)))
    fault = "" if isinstance(saved, kind) else f"is {type(saved).__name__}, not {type(example).__name__}"
    if not fault and is_list and example and len(saved) != len(example):
        fault = f"has {len(saved)} entries, not {len(example)}"
    if fault:
        raise DataError(f"{path}: its field {key} {fault}; it was changed after saving, use another checkpoint.")
    for name, value in example.items() if is_mapping else enumerate(example) if is_list else ():
        field = f"{key}.{name}".lstrip(".")
        if is_mapping and name not in saved:
            raise DataError(f"{path}: its field {field} is missing; it was changed after saving.")
        check_structure(saved[name], value, path, field)


def check_loadable(settings: Mapping[str, Any]) -> None:
    """Check before training that hyperparameters can be loaded again with `weights_only=True`.

    Raises:
        ConfigError: naming the first that is not plain data or tensors.
    """
    for name, value in settings.items():
        if not is_loadable(value):
            raise ConfigError(
                f"task: its hyperparameter {name}={value!r} is a {type(value).__name__} or holds something that "
                "cannot be loaded safely from a checkpoint; use numbers, text, lists, dicts and tensors."
            )


def is_loadable(value: Any) -> bool:
    """Return whether a value is plain data or tensors, which can be loaded with `weights_only=True`."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):
        return False
    return True


def check_free_space(run_dir: Path, module: torch.nn.Module) -> None:
    """Check that three checkpoints of a module fit on the disk.

    Raises:
        StorageError: if fewer bytes are free.
    """
    last = checkpoint_file(run_dir, "last")
    weight_bytes = sum(value.nbytes for value in module.state_dict().values())
    needed_bytes = _NUM_CHECKPOINTS * (last.stat().st_size if last.is_file() else _NUM_WEIGHT_COPIES * weight_bytes)
    free_bytes = free_disk_bytes(run_dir)
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{run_dir} has {free_bytes:,} bytes free, and three checkpoints of this network take {needed_bytes:,}; "
            "free some space, or choose another directory with paths.log_dir=DIR."
        )


def _check_finite(checkpoint: Mapping[str, Any], path: Any) -> None:
    def check(value: torch.Tensor) -> None:
        # Check the sum first: it costs a tenth. A sum of finite numbers may overflow, hence the second check.
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            raise DivergedError(
                f"the weights are no longer finite, so {path} was not overwritten; lower optimizer.lr or set "
                "trainer.gradient_clip_val=1.0."
            )

    trained = [value for name, value in checkpoint.items() if name in _TRAINED_KEYS]
    apply_to_collection(trained or dict(checkpoint), torch.Tensor, check)
