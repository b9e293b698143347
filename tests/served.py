"""Start `python src/serve.py` for tests, and the application inside the test's own process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image
from starlette.testclient import TestClient

from imago.paths import PROJECT_ROOT
from imago.serve.app import Service, create_app
from imago.serve.decoder import DecoderLimits
from imago.serve.decoding import DecoderPool
from imago.serve.metrics import Metrics
from imago.serve.models import Models
from imago.serve.settings import read_settings

LIMITS = DecoderLimits(memory_mb=2048, cpu_s=10, max_pixels=60_000_000)


def encode(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    """Return an image, uint8 (H, W, 3), as the bytes of a file."""
    content = BytesIO()
    Image.fromarray(pixels).save(content, format, **options)
    return content.getvalue()


def colored(red: int, green: int, blue: int, format: str = "PNG", side: int = 20) -> bytes:
    """Return an image of one color."""
    return encode(np.full((side, side, 3), (red, green, blue), np.uint8), format)


@contextmanager
def app_client(*arguments: str, api_key: str = "") -> Iterator[TestClient]:
    """Run the application of a command line in this process; `client.service` is its service."""
    settings = read_settings(arguments)
    metrics = Metrics()
    limits = DecoderLimits(settings.decoder_memory_mb, settings.decoder_cpu_s, settings.max_pixels)
    decoders = DecoderPool(settings.decoders, limits, settings.max_queue, settings.decoder_timeout_s)
    service = Service(Models(lambda: read_settings(arguments), metrics), decoders, metrics)
    with TestClient(create_app(service, api_key), raise_server_exceptions=False) as client:
        client.service = service
        yield client


class Server:
    """A service in a process of its own, as a user starts it.

    Attributes:
        url: its address.
        process: the process.
    """

    def __init__(self, *arguments: str, folder: Path, **environment: str) -> None:
        self._log = folder / "serve.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "src/serve.py", *arguments, "port=0"],
                cwd=PROJECT_ROOT,
                env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = self.wait_for(r"at (http://\S+)")

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str, timeout_s: float = 60) -> str:
        """Wait until the output matches, and return the first group or the whole match."""
        end_s = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.output)):
            assert time.monotonic() < end_s, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.02)
        return match[match.lastindex or 0]

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the service."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def post(self, data: bytes, path: str = "/predict", **settings) -> httpx.Response:
        """Send an image as it is."""
        return httpx.post(self.url + path, content=data, timeout=60, **settings)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)
