"""Decoder processes return the pixels of `imago.images`, and nothing that happens to one reaches the service."""

import asyncio
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import psutil
import pytest
from served import LIMITS, encode
from warm_python import is_alive

from imago.images import Preprocess, read_image, resize_and_crop
from imago.serve.decoder import DECODED, REFUSED, REPLY, DecoderLimits
from imago.serve.decoding import DecoderPool
from imago.serve.errors import RequestError

PREPROCESS = Preprocess(16, 20, "center", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
LARGE = encode(np.zeros((5000, 5000, 3), np.uint8))  # takes longer than a test waits
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")


@asynccontextmanager
async def pool(
    num_workers: int = 1, limits: DecoderLimits = LIMITS, max_waiting: int = 9, timeout_s: float = 30
) -> AsyncIterator[DecoderPool]:
    decoders = DecoderPool(num_workers, limits, max_waiting, timeout_s)
    try:
        await decoders.start()
        yield decoders
    finally:
        await decoders.close()


def workers() -> list[psutil.Process]:
    """Return the workers of this process: the children of its child."""
    parents = [child for child in psutil.Process().children() if "imago.serve.decoder" in child.cmdline()]
    return [worker for parent in parents for worker in parent.children()]


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG file of zeros, of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))

    header = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(bytes(3 * width + 1)) for _ in range(height)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert workers() == []


async def code_of(decoding) -> str:
    with pytest.raises(RequestError) as caught:
        await decoding
    return caught.value.code


def test_pixels_of_every_format_are_those_of_the_project():
    async def check() -> None:
        async with pool() as decoders:
            for format in FORMATS:
                data = encode(PIXELS, format)
                expected = resize_and_crop(read_image(data), PREPROCESS)
                decoded = await decoders.decode(data, PREPROCESS, crop=True)
                np.testing.assert_array_equal(decoded.pixels, expected.transpose(2, 0, 1))
                np.testing.assert_array_equal(read_image(decoded.png), expected)

    asyncio.run(check())


def test_bad_images_have_a_code_each_and_the_worker_goes_on():
    async def check() -> None:
        async with pool(limits=replace(LIMITS, max_pixels=10_000)) as decoders:
            before = workers()
            for data, code in (
                (b"", "empty_file"),
                (b"<html>", "unsupported_image"),
                (encode(PIXELS)[:200], "corrupt_image"),
                (b"\x89PNG\r\n\x1a\n" + bytes(40), "corrupt_image"),
                (png_of(101, 100), "too_many_pixels"),
            ):
                assert await code_of(decoders.decode(data, PREPROCESS)) == code
            await decoders.decode(png_of(100, 100), PREPROCESS)
            assert workers() == before

    asyncio.run(check())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [kill, stop])
def test_a_worker_that_dies_or_hangs_costs_one_image_and_is_replaced(harm: Callable):
    async def check() -> None:
        async with pool(timeout_s=5) as decoders:
            (worker,) = workers()
            image = asyncio.create_task(decoders.decode(LARGE, PREPROCESS))
            await asyncio.sleep(0.05)
            harm(worker.pid)
            assert await code_of(image) == "corrupt_image"
            await decoders.decode(encode(PIXELS), PREPROCESS)
            assert decoders.num_replaced == 1
            await asyncio.to_thread(psutil.wait_procs, [worker], 10)  # until its parent has seen its end
            assert worker not in workers()

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("of_parent", [False, True])
def test_the_death_of_an_idle_worker_or_of_their_parent_costs_no_image(of_parent: bool):
    async def check() -> None:
        async with pool(num_workers=2) as decoders:
            first, second = workers()
            parent = first.parent()
            assert parent is not None
            dying = [first, second] if of_parent else [second]
            (parent if of_parent else second).kill()
            while any(is_alive(worker.pid) for worker in dying):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            await asyncio.gather(*(decoders.decode(encode(PIXELS), PREPROCESS) for _ in range(4)))
            while len(workers()) < 2:
                await asyncio.sleep(0.01)
            assert decoders.num_replaced == len(dying)

    asyncio.run(check())


@pytest.mark.parametrize(
    "reply",
    [
        REPLY.pack(DECODED, 2**32 - 1, 0),
        REPLY.pack(DECODED, 3, 0) + b"abc",
        REPLY.pack(REFUSED, 3, 1) + b"abcd",
        REPLY.pack(REFUSED, 13, 1) + b"corrupt_image\xff",
    ],
)
def test_a_worker_under_foreign_control_costs_one_image_and_is_replaced(reply: bytes):
    async def check() -> None:
        async with pool() as decoders:
            ours, theirs = socket.socketpair()
            with theirs:
                reader, writer = await asyncio.open_connection(sock=ours)
                worker = decoders._idle.get_nowait()
                decoders._idle.put_nowait(worker._replace(reader=reader, writer=writer))
                theirs.sendall(reply)
                assert await code_of(decoders.decode(encode(PIXELS), PREPROCESS)) == "corrupt_image"
            await decoders.decode(encode(PIXELS), PREPROCESS)

    asyncio.run(check())


@pytest.mark.slow
def test_workers_are_replaced_as_soon_as_files_are_free_again():
    async def check() -> None:
        async with pool() as decoders:
            (worker,) = workers()
            worker.parent().kill()
            while is_alive(worker.pid):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                image = asyncio.create_task(decoders.decode(encode(PIXELS), PREPROCESS))
                await asyncio.sleep(0.5)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await image

    asyncio.run(check())


def test_a_worker_whose_parent_has_ended_before_it_could_ask_the_kernel_ends():
    code = "from imago.serve.decoder import _end_with_parent; _end_with_parent({}); print('serves')"
    for parent, output in ((os.getpid(), "serves\n"), (1, "")):
        command = [sys.executable, "-c", code.format(parent)]
        assert subprocess.run(command, capture_output=True, text=True, check=True, cwd="src").stdout == output


def test_a_lower_limit_of_the_servers_own_cpu_time_stays():
    code = (
        "import resource\n"
        "from imago.serve.decoder import _limit\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (50, 50))\n"
        "for limit in (40, 60, 45):\n"
        "    _limit(resource.RLIMIT_CPU, limit, is_final=False)\n"
        "    print(*resource.getrlimit(resource.RLIMIT_CPU))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="src")
    assert done.stdout == "40 50\n50 50\n45 50\n"


@pytest.mark.slow
def test_a_cancelled_image_does_not_answer_the_next_one():
    async def check() -> None:
        small = encode(PIXELS)
        async with pool() as decoders:
            task = asyncio.create_task(decoders.decode(LARGE, PREPROCESS))
            await asyncio.sleep(0.02)
            task.cancel()
            decoded = await decoders.decode(small, PREPROCESS)
            expected = resize_and_crop(read_image(small), PREPROCESS)
            np.testing.assert_array_equal(decoded.pixels, expected.transpose(2, 0, 1))

    asyncio.run(check())


@pytest.mark.slow
def test_memory_of_a_worker_is_limited():
    async def check() -> None:
        async with pool(limits=replace(LIMITS, memory_mb=300)) as decoders:
            assert await code_of(decoders.decode(png_of(7000, 7000), PREPROCESS)) == "too_many_pixels"
            await decoders.decode(encode(PIXELS), PREPROCESS)

    asyncio.run(check())


@pytest.mark.slow
def test_too_many_waiting_images_are_refused():
    async def check() -> None:
        async with pool(max_waiting=2) as decoders:
            data = encode(np.zeros((2000, 2000, 3), np.uint8))
            images = [decoders.decode(data, PREPROCESS) for _ in range(6)]
            results = await asyncio.gather(*images, return_exceptions=True)
            refused = [result for result in results if isinstance(result, RequestError)]
            assert [error.code for error in refused] == ["busy"] * 3

    asyncio.run(check())


def test_a_confined_process_has_no_files_no_network_and_no_core_dumps():
    code = (
        "import json, os, resource, signal, socket, sys\n"
        "from imago.serve.decoder import DECODED, REFUSED, REPLY, DecoderLimits, confine\n"
        "version, denied = confine(DecoderLimits(1024, 1, 1)), {}\n"
        "attempts = {'read': lambda: open('/etc/hostname'), 'list': lambda: os.listdir('/'),\n"
        "    'write': lambda: open('written', 'w'), 'run': lambda: os.execv('/bin/true', ['true']),\n"
        "    'connect': lambda: socket.create_connection(('127.0.0.1', 9)),\n"
        "    'signal': lambda: os.kill(os.getppid(), 0)}\n"
        "for name, attempt in attempts.items():\n"
        "    try:\n"
        "        attempt()\n"
        "        denied[name] = False\n"
        "    except OSError as error:\n"
        "        denied[name] = isinstance(error, PermissionError)\n"
        "limits = [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)]\n"
        "print(json.dumps([version, denied, limits]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="src")
    version, denied, limits = json.loads(done.stdout)
    assert limits == [0, 0]
    if version < 6:
        pytest.skip(f"this kernel has version {version} of landlock")
    assert denied == dict.fromkeys(denied, True)
