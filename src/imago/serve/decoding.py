"""Decode images in worker processes: the side of the server, see `imago.serve.decoder`."""

import asyncio
import functools
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imago.images import Preprocess
from imago.serve.decoder import DECODED, REFUSED, REPLY, REQUEST, DecoderLimits
from imago.serve.errors import RequestError

log = logging.getLogger(__name__)

_START_S = 30.0  # until the process that forks the workers has imported the decoders; our own choice
_RETRY_S = 1.0  # between two attempts to start a worker; our own choice
_MAX_OVERHEAD = 2**16  # bytes of a message, or of a PNG beyond those of its pixels; our own choice
_FAILED = "the decoder failed for this image; save it again as JPEG or PNG."


class Decoded(NamedTuple):
    """An image as the network gets it: uint8 (3, S, S), and the same as PNG if that was asked for."""

    pixels: np.ndarray
    png: bytes


class _Worker(NamedTuple):
    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class DecoderPool:
    """Worker processes that decode one image each at a time; one that dies or hangs is replaced.

    The process that forks them is started at once: it imports the decoders while the server imports its own packages,
    and has none of the server's memory. All of them end with the server, even if that is killed.

    Args:
        num_workers: images that are decoded at the same time.
        limits: of each worker.
        max_waiting: images that may wait for a worker.
        timeout_s: time of one image, after which its worker is killed.

    Attributes:
        num_waiting: images that wait for a worker.
        num_replaced: workers that were replaced since the start.
    """

    def __init__(self, num_workers: int, limits: DecoderLimits, max_waiting: int, timeout_s: float) -> None:
        self._num_workers, self._limits = num_workers, limits
        self._max_waiting, self._timeout_s = max_waiting, timeout_s
        self.num_waiting = self.num_replaced = 0
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._replacements: set[asyncio.Task] = set()
        self._forks = asyncio.Lock()
        self._start_parent()

    def _start_parent(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_S)
        arguments = [str(theirs.fileno()), json.dumps(asdict(self._limits))]
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "imago.serve.decoder", *arguments],
            cwd=Path(__file__).parents[2],  # where `-m` finds imago, however the server was started
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # threads do not survive a fork
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C in the terminal of the server does not reach it
        )
        theirs.close()
        self._is_confined: bool | None = None

    async def start(self) -> None:
        """Start the workers.

        Raises:
            OSError: if the process that forks them has ended.
        """
        for _ in range(self._num_workers):
            self._idle.put_nowait(await self._start_worker())

    async def close(self) -> None:
        """End all processes and their connections."""
        for task in self._replacements:
            task.cancel()
        self.kill()
        while not self._idle.empty():
            self._idle.get_nowait().writer.close()

    def kill(self) -> None:
        """End all processes."""
        self._control.close()
        self._parent.kill()  # its workers end with it
        self._parent.wait()

    async def decode(self, data: bytes, preprocess: Preprocess, crop: bool = False) -> Decoded:
        """Decode an image and crop it as `preprocess` says; with `crop`, return that as PNG too.

        Raises:
            RequestError: the image cannot be used, or too many are waiting.
        """
        worker = await self._next_worker()
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await _ask(worker, data, preprocess, crop)
            result = _read_reply(*reply, preprocess.size)
        except (OSError, EOFError, TimeoutError, ValueError, KeyError) as error:
            self._replace(worker)
            reason = "took too long" if isinstance(error, TimeoutError) else "ended or sent nonsense"
            log.warning("a decoder %s while it read an image of %d bytes; it is replaced", reason, len(data))
            raise RequestError("corrupt_image", _FAILED) from error
        except BaseException:  # cancelled: the reply that is still to come must not answer the next request
            self._replace(worker)
            raise
        self._idle.put_nowait(worker)
        if isinstance(result, RequestError):
            raise result
        return result

    async def _next_worker(self) -> _Worker:
        if self._idle.empty() and self.num_waiting >= self._max_waiting:
            raise RequestError("busy", "too many images are waiting to be decoded; try again in a moment.")
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                while (worker := await self._idle.get()).reader.at_eof():  # it has died while it was idle
                    self._replace(worker)
                return worker
        except TimeoutError as error:
            raise RequestError("busy", "no decoder was free in time; try again in a moment.") from error
        finally:
            self.num_waiting -= 1

    def _replace(self, worker: _Worker) -> None:
        self.num_replaced += 1
        worker.writer.transport.abort()
        if not worker.reader.at_eof():  # else it has ended, and another process may have its number
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        task = asyncio.get_running_loop().create_task(self._add_worker())
        self._replacements.add(task)
        task.add_done_callback(self._replacements.discard)

    async def _add_worker(self) -> None:
        while True:
            try:
                return self._idle.put_nowait(await self._start_worker())
            except OSError as error:  # the parent was killed, and all workers with it
                log.warning("the parent of the decoders has ended (%s); it is started again", error)
                self.kill()
                with suppress(OSError):  # no memory or files are free: the next attempt fails too
                    self._start_parent()
                await asyncio.sleep(_RETRY_S)

    async def _start_worker(self) -> _Worker:
        async with self._forks:
            ours, theirs = socket.socketpair()
            with theirs:
                pid = await asyncio.to_thread(self._fork, theirs)
            ours.setblocking(False)
            return _Worker(pid, *await asyncio.open_connection(sock=ours))

    def _fork(self, connection: socket.socket) -> int:
        if self._is_confined is None:
            self._is_confined = bool(_read(self._control, 1)[0])
            if not self._is_confined:
                more = "" if sys.platform == "linux" else ", and their memory is not limited"
                log.warning("this kernel has no landlock: the decoders can read the files of this user%s", more)
        socket.send_fds(self._control, [b"+"], [connection.fileno()])
        return struct.unpack("!I", _read(self._control, 4))[0]


def _read(control: socket.socket, length: int) -> bytes:
    content = control.recv(length, socket.MSG_WAITALL)
    if len(content) < length:
        raise ConnectionError("no answer")
    return content


@functools.cache
def _options(preprocess: Preprocess, crop: bool) -> bytes:
    return json.dumps({"preprocess": preprocess.to_dict(), "crop": crop}).encode()


async def _ask(worker: _Worker, data: bytes, preprocess: Preprocess, crop: bool) -> tuple[int, bytes, bytes]:
    options = _options(preprocess, crop)
    worker.writer.writelines((REQUEST.pack(len(options), len(data)), options, data))
    await worker.writer.drain()
    status, *lengths = REPLY.unpack(await worker.reader.readexactly(REPLY.size))
    if max(lengths) > _MAX_OVERHEAD + 4 * preprocess.size**2:
        raise ValueError("reply of a worker under foreign control")
    first, second = [await worker.reader.readexactly(length) for length in lengths]
    return status, first, second


def _read_reply(status: int, first: bytes, second: bytes, size: int) -> Decoded | RequestError:
    """Return the image or the error of a reply.

    Raises:
        KeyError, ValueError: a reply that only a worker under foreign control sends.
    """
    if status == DECODED:
        return Decoded(np.frombuffer(first, np.uint8).reshape(3, size, size), second)
    code, message = first.decode(), second.decode()
    if status == REFUSED:
        return RequestError(code, message)
    log.error("a decoder raised %s: %s", code, message)
    return RequestError("corrupt_image", _FAILED)
