"""Results of an examination on the disk: a second one decodes only the files that are new or have changed."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imago.data.image_record import RECORD

log = logging.getLogger(__name__)

_VERSION = 1  # another one where the same file would get another record; older results are then not used


@dataclass(frozen=True)
class KeptResults:
    """Records of files as they were at some time.

    Attributes:
        names: of the N files, from the root.
        num_bytes: int64 (N,).
        mtime_ns: int64 (N,).
        records: (N,) of `RECORD`.
        errors: N texts, "" for a good file.
    """

    names: tuple[str, ...]
    num_bytes: np.ndarray
    mtime_ns: np.ndarray
    records: np.ndarray
    errors: tuple[str, ...]

    def find(self, names: Sequence[str], num_bytes: np.ndarray, mtime_ns: np.ndarray) -> np.ndarray:
        """Give the place of each file among these, -1 where it is unknown or has changed, int64 (M,)."""
        place_of = {name: place for place, name in enumerate(self.names)}
        places = np.array([place_of.get(name, -1) for name in names], np.int64)
        known = np.flatnonzero(places >= 0)
        there = places[known]
        is_same = (self.num_bytes[there] == num_bytes[known]) & (self.mtime_ns[there] == mtime_ns[known])
        places[known[~is_same]] = -1
        return places

    def updated(self, newer: "KeptResults") -> "KeptResults":
        """Put newer results in: those of files that nobody asked for this time stay."""
        replaced = set(newer.names)
        stay = [place for place, name in enumerate(self.names) if name not in replaced]
        return KeptResults(
            (*(self.names[place] for place in stay), *newer.names),
            np.concatenate([self.num_bytes[stay], newer.num_bytes]),
            np.concatenate([self.mtime_ns[stay], newer.mtime_ns]),
            np.concatenate([self.records[stay], newer.records]),
            (*(self.errors[place] for place in stay), *newer.errors),
        )


def file_for(root: Path, cache_dir: Path) -> Path:
    """Name the file for the data set in `root`, wherever it is called from."""
    place = os.fsencode(root.resolve())
    return cache_dir / f"examined-{hashlib.blake2b(place, digest_size=8).hexdigest()}.npz"


def load_results(file: Path) -> KeptResults:
    """Read what is kept; nothing where there is no file, or one that is damaged or of another version."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if arrays["version"] == _VERSION and arrays["records"].dtype == RECORD:
                columns = (arrays["num_bytes"], arrays["mtime_ns"], arrays["records"])
                return KeptResults(_split(arrays["names"]), *columns, _split(arrays["errors"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be used, images are examined again: %s", file, error)
    return KeptResults((), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, RECORD), ())


def save_results(file: Path, results: KeptResults) -> None:
    """Write them, whole or not at all; where that is not possible it is said, and nothing else is lost."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as opened:
            columns = {"num_bytes": results.num_bytes, "mtime_ns": results.mtime_ns, "records": results.records}
            texts = {"names": _joined(results.names), "errors": _joined(results.errors)}
            np.savez(opened, version=np.array(_VERSION), **columns, **texts)  # type: ignore[arg-type]
        part.replace(file)
    except OSError as error:
        log.warning("results cannot be kept, so the next time all is decoded again: %s: %s", file, error.strerror)
        with suppress(OSError):
            part.unlink()


def _joined(texts: Sequence[str]) -> np.ndarray:
    """Many short texts as one array of bytes: no name of a file holds a zero."""
    content = "".join(f"{text}\0" for text in texts).encode(errors="surrogateescape")
    return np.frombuffer(content, np.uint8)


def _split(content: np.ndarray) -> tuple[str, ...]:
    return tuple(content.tobytes().decode(errors="surrogateescape").split("\0")[:-1])
