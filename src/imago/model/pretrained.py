"""Published files of weights: from torch's hub cache, downloaded if need be, within seconds a plain no if offline."""

import hashlib
import re
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from imago.download import is_reachable
from imago.errors import DataError

REACH_TIMEOUT_S = 3.0  # with some 5 s for the imports before it, the answer "no network" comes within 10 s
STALL_TIMEOUT_S = 30.0  # without one, torch.hub waits for ever on a server that has stopped sending
WAYS_OUT = (
    "copy the file there, or type model.weights=FILE.pth for another place or model.weights=null for none at all."
)


def cached(url: str) -> Path:
    """Give the file of `url` in torch's hub cache, downloaded if it is not there, and sound.

    Raises:
        DataError: in one line, if it cannot be downloaded or is damaged.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlsplit(url).path).name
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch.hub's convention: how the sha256 begins
    prefix = match[1] if match else ""
    if not file.is_file():
        _download(url, file, prefix)
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if not found.startswith(prefix):
        raise DataError(
            f"{file} is damaged (its sha256 begins with {found[:8]}, not {prefix}); delete it, then run again."
        )
    return file


def refuse_offline(url: str, name: str, folder: Path, ways_out: str = WAYS_OUT) -> None:
    """Ask for the headers of `url` before a download, which has no time limit of its own.

    Args:
        url: of the file.
        name: of the file, for the message.
        folder: where it was looked for.
        ways_out: end of the message.

    Raises:
        DataError: with both ways out, if no answer comes within seconds.
    """
    if not is_reachable(url, REACH_TIMEOUT_S):
        host = urlsplit(url).netloc
        raise DataError(f"{name} is not in {folder} and cannot be downloaded (no answer from {host}); {ways_out}")


def _download(url: str, file: Path, prefix: str) -> None:
    refuse_offline(url, file.name, file.parent)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_S)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix, progress=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(f"the download of {file.name} into {file.parent} failed ({error}); {WAYS_OUT}") from error
    finally:
        socket.setdefaulttimeout(before)
