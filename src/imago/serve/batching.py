"""Run a network on images of several requests at once: one queue per network, and threads that take batches from it."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imago.onnx_classifier import OnnxClassifier
from imago.serve.errors import RequestError

# A network that takes longer than this for a few images computes each of them as slowly in a batch as alone (ResNet-18:
# 43 ms per image and core in batches of 1 and of 32; SimpleCNN: 0.46 and 0.21 ms). A larger batch would only let its
# first image wait for the last one.
_MAX_BATCH_S = 0.05
# A network that is faster than this keeps up with all requests on one thread, in larger batches; our own choice.
_FAST_S = 0.003
_FORGETTING = 0.2  # weight of the last batch in the mean time per image; our own choice


class _Job(NamedTuple):
    pixels: np.ndarray  # uint8 (3, S, S)
    future: asyncio.Future


class Batcher:
    """A queue of images, and threads that run the network on what has arrived as soon as they are free.

    Args:
        classifier: the network, which several threads may run at the same time.
        num_threads: batches at the same time, of a network that is not fast.
        max_batch: images of one batch; fewer if they take long.
        max_wait_ms: time to wait for more images when a batch is not full; 0 runs what is there.
        max_queue: images that may wait.
        on_batch: called with the number of images of each batch, from a thread.

    Raises:
        DataError: the network fails.
    """

    def __init__(
        self,
        classifier: OnnxClassifier,
        num_threads: int,
        max_batch: int,
        max_wait_ms: float,
        max_queue: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._classifier, self._on_batch = classifier, on_batch
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_ms / 1000, max_queue
        size = classifier.preprocess.size
        for _ in range(2):  # the first call is slow
            start_s = time.perf_counter()
            classifier.predict(np.zeros((1, 3, size, size), np.uint8))
        self._image_s = time.perf_counter() - start_s  # mean time of an image in a batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        for _ in range(1 if self._image_s < _FAST_S else num_threads):
            threading.Thread(target=self._run, daemon=True).start()

    @property
    def num_waiting(self) -> int:
        """Images that wait for the network."""
        return self._jobs.qsize()

    async def predict(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map an image, uint8 (3, S, S), to logits and probabilities, float32 (K,) each.

        Raises:
            RequestError: too many images are waiting.
            DataError: the network fails.
        """
        if self._jobs.qsize() >= self._max_queue:
            raise RequestError("busy", "too many images are waiting for this model; try again in a moment.")
        future = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(pixels, future))
        return await future

    def close(self) -> None:
        """End the threads after the images that are waiting."""
        self._jobs.put(None)

    def _run(self) -> None:
        while batch := self._next_batch():
            start_s = time.perf_counter()
            try:
                outputs = self._classifier.predict(np.stack([job.pixels for job in batch]))
                results: list = list(zip(*outputs, strict=True))
            except Exception as error:  # the requests raise it
                results = [error] * len(batch)
            image_s = (time.perf_counter() - start_s) / len(batch)
            self._image_s += _FORGETTING * (image_s - self._image_s)
            self._on_batch(len(batch))
            batch[0].future.get_loop().call_soon_threadsafe(_set_results, batch, results)

    def _next_batch(self) -> list[_Job]:
        """Wait for an image and return it with those that follow; nothing at the end."""
        batch: list[_Job] = []
        deadline_s = 0.0
        limit = min(self._max_batch, 1 + int(_MAX_BATCH_S / max(self._image_s, 1e-6)))
        while len(batch) < limit:
            try:
                wait_s = deadline_s - time.monotonic()
                job = self._jobs.get(timeout=wait_s) if batch and wait_s > 0 else self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # for the next call, or another thread
                break
            deadline_s = deadline_s or time.monotonic() + self._max_wait_s
            batch.append(job)
        return batch


def _set_results(batch: list[_Job], results: list) -> None:
    for job, result in zip(batch, results, strict=True):
        if job.future.done():  # its request was cancelled
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
