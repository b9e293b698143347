"""Download published weights into torch's hub cache, and fail within seconds when offline."""

import hashlib
import re
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from imago.download import is_reachable
from imago.errors import DataError

_REACH_TIMEOUT_S = 3.0  # with some 5 s for the imports before it, being offline is reported within 10 s
_STALL_TIMEOUT_S = 30.0  # torch.hub itself has no timeout for a server that has stopped sending
_REMEDY = "copy the file there, or type model.weights=FILE.pth, or model.weights=null to train from scratch."


def download(url: str) -> Path:
    """Return the file of `url` in torch's hub cache, downloaded if it is not there.

    Raises:
        DataError: it cannot be downloaded or is damaged.
    """
    directory = Path(torch.hub.get_dir()) / "checkpoints"
    file = directory / Path(urlsplit(url).path).name
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch.hub's convention: the first digits of the sha256
    prefix = match[1] if match else ""
    if not file.is_file():
        check_online(url, file.name, directory)
        _download(url, file, prefix)
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if not digest.startswith(prefix):
        raise DataError(
            f"{file} is damaged (its sha256 begins with {digest[:8]}, not {prefix}); delete it, then run again."
        )
    return file


def check_online(url: str, name: str, directory: Path, remedy: str = _REMEDY) -> None:
    """Request the headers of `url` before a download, which has no time limit of its own.

    Args:
        url: address of the file.
        name: name of the file, for the message.
        directory: the cache that does not have it.
        remedy: end of the message.

    Raises:
        DataError: no answer within seconds.
    """
    if not is_reachable(url, _REACH_TIMEOUT_S):
        host = urlsplit(url).netloc
        raise DataError(f"{name} is not in {directory} and cannot be downloaded (no answer from {host}); {remedy}")


def _download(url: str, file: Path, prefix: str) -> None:
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_TIMEOUT_S)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix, progress=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(f"the download of {file.name} into {file.parent} failed ({error}); {_REMEDY}") from error
    finally:
        socket.setdefaulttimeout(timeout_s)
