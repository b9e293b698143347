"""Decode images in processes that can do nothing else: the side of the processes, see `imago.serve.decoding`.

`python -m imago.serve.decoder SOCKET LIMITS` imports the decoders, gives up its rights, and forks a worker for each
socket that it is sent. A fork takes milliseconds, and no worker ever sees the memory of the server.
"""

import ctypes
import functools
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from io import BytesIO
from typing import NoReturn

import numpy as np
from PIL import Image

from imago.errors import ImageError
from imago.images import Preprocess, read_image, resize_and_crop

# A request is two texts: options as JSON, and the bytes of an image. A reply is a status and two texts: uint8 (3, S, S)
# and a PNG or nothing, or the code of an error and its message. No pickle: a worker may be under foreign control.
REQUEST, REPLY = struct.Struct("!II"), struct.Struct("!BII")  # the lengths in bytes; the status comes first
DECODED, REFUSED, FAILED = range(3)

_NUM_FILES = 16  # open files of a worker: it has 5, and can open no other; our own choice
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # system calls, of every architecture
# Rights that landlock can take away, by the first version of its interface that has them: linux/landlock.h
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS, _SCOPES = {4: 0b11}, {6: 0b11}  # TCP; signals and abstract sockets outside
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class DecoderLimits:
    """Limits of one worker: address space in MB, CPU time per image in seconds, pixels per image."""

    memory_mb: int
    cpu_s: int
    max_pixels: int


def main() -> None:
    """Import everything, give up all rights, then fork a worker for each socket, until the server has ended."""
    control, limits = socket.socket(fileno=int(sys.argv[1])), DecoderLimits(**json.loads(sys.argv[2]))
    _end_with_parent(os.getppid())
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to all processes of a service: the server ends
        signal.signal(stop, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes workers that have ended
    Image.init()  # imports the plugin of every format
    Image.new("RGB", (8, 8)).resize((4, 4)).save(BytesIO(), "PNG")
    # Standard output is the access log; libraries print what damaged files contain.
    with open(os.devnull, "wb") as null:
        for number in (1, 2):
            os.dup2(null.fileno(), number)
    control.sendall(bytes([confine(limits)]))
    parent = os.getpid()
    while True:
        request, files, _, _ = socket.recv_fds(control, 1, 1)
        if not request:
            return
        if not (pid := os.fork()):
            control.close()
            _end_with_parent(parent)
            _serve(socket.socket(fileno=files[0]), limits)
        os.close(files[0])
        control.sendall(struct.pack("!I", pid))


def confine(limits: DecoderLimits) -> int:
    """Limit the memory and the rights of this process and its children, for good.

    Landlock denies opening any file, TCP, and signals to other processes, as far as the kernel has it.

    Returns:
        The version of landlock's interface; 0 if there is none.
    """
    for kind, limit in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _NUM_FILES)):
        _limit(kind, limit, is_final=True)
    if sys.platform != "linux":  # macOS does not limit the memory
        return 0
    _limit(resource.RLIMIT_AS, limits.memory_mb * 2**20, is_final=True)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = max(0, _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1))  # -1: an older kernel, or switched off
    rights = [
        sum(bits for since, bits in table.items() if since <= version)
        for table in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)
    ]
    attributes = struct.pack("QQQ", *rights)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0) if version else -1
    if rules < 0 or _libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0):
        return 0
    os.close(rules)
    return version


def _limit(kind: int, limit: int, is_final: bool) -> None:
    """Set a limit, which this process can raise again unless it `is_final`; one of the server that is lower stays."""
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit if is_final else hard))


def _end_with_parent(parent: int) -> None:
    """Let the kernel kill this process with its parent; elsewhere it ends when it reads from the closed connection."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent != os.getppid():  # it has ended before the line above
        os._exit(0)


def _serve(connection: socket.socket, limits: DecoderLimits) -> NoReturn:
    """Answer requests until the server closes the connection; any other error than the image's ends the process."""
    stream = connection.makefile("rwb")
    while header := stream.read(REQUEST.size):
        options, data = (stream.read(length) for length in REQUEST.unpack(header))
        # SIGXCPU ends the process; the limit is of whole seconds since its start.
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + limits.cpu_s, is_final=False)
        status, *texts = answer(data, limits, *_read_options(options))
        stream.write(REPLY.pack(status, *map(len, texts)))
        stream.writelines(texts)
        stream.flush()
    os._exit(0)


@functools.lru_cache
def _read_options(options: bytes) -> tuple[Preprocess, bool]:
    values = json.loads(options)
    return Preprocess.from_dict(values["preprocess"]), values["crop"]


def answer(data: bytes, limits: DecoderLimits, preprocess: Preprocess, crop: bool) -> tuple[int, bytes, bytes]:
    """Decode an image and crop it as the network needs it; return the parts of a reply."""
    try:
        square = resize_and_crop(read_image(data, limits.max_pixels), preprocess)
    except ImageError as error:
        return REFUSED, error.code.encode(), str(error).encode(errors="replace")
    except MemoryError:
        message = f"the image needs more than {limits.memory_mb:,} MB to be decoded; scale it down."
        return REFUSED, b"too_many_pixels", message.encode()
    except Exception as error:  # a bug, which the server logs: standard error is closed
        return FAILED, type(error).__name__.encode(), str(error).encode(errors="replace")
    png = BytesIO()
    if crop:
        Image.fromarray(square).save(png, "PNG")
    return DECODED, np.ascontiguousarray(square.transpose(2, 0, 1)).tobytes(), png.getvalue()


if __name__ == "__main__":
    main()
