"""Download datasets, after checking within seconds that the server can be reached.

The downloads of the libraries have no timeout.
"""

import os
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from imago.errors import DataError

TIMEOUT_S = 8  # with the imports before it, being offline is reported within 10 s


def is_reachable(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Request the headers of `url`, through the proxy of the environment; return False if none arrive in time."""
    reached = threading.Event()

    def request_headers() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with suppress(OSError), urllib.request.urlopen(request, timeout=timeout_s):  # URLError is an OSError
            reached.set()

    # In a daemon thread, because a DNS lookup can take much longer than the timeout of the socket.
    thread = threading.Thread(target=request_headers, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return reached.is_set()


def data_directories(data_dir: Path) -> list[Path]:
    """Return the directories where a dataset may be: `data_dir` and $IMAGO_DATA_DIR."""
    other = os.environ.get("IMAGO_DATA_DIR")
    return [data_dir, Path(other)] if other else [data_dir]


def download_dataset(source: Any, url: str | None, data_dir: Path, remedy: str, **arguments: Any) -> Any:
    """Open a dataset of torchvision after downloading it.

    Args:
        source: the class in `torchvision.datasets`.
        url: one of its URLs, which is requested first; None downloads without this check.
        data_dir: directory that the files are downloaded to.
        remedy: what to do without a network, for the error message.
        arguments: further arguments of the class, e.g. train=True.

    Raises:
        DataError: within 10 s, if there is no network.
    """
    name = source.__name__
    if url and not is_reachable(url):
        fault = f"is not in {' or '.join(map(str, data_directories(data_dir)))} and cannot be downloaded (no network)"
        raise DataError(f"{name} {fault}; {remedy}. data=shapes needs no data and no network.")
    try:
        return source(str(data_dir), download=True, **arguments)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the download of {name} into {data_dir} failed: {reason}; run the command again.") from error
