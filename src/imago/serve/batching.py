"""Run a network on images of several requests at once: one queue and one thread per network."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imago.onnx_classifier import OnnxClassifier
from imago.serve.errors import RequestError


class _Job(NamedTuple):
    pixels: np.ndarray  # uint8 (3, S, S)
    future: asyncio.Future


class Batcher:
    """A queue of images and the thread that runs the network on what has arrived since its last batch.

    Args:
        classifier: the network.
        max_batch: images of one batch.
        max_wait_ms: time to wait for more images when a batch is not full; 0 runs what is there.
        max_queue: images that may wait.
        on_batch: called with the number of images of each batch, from the thread.
    """

    def __init__(
        self,
        classifier: OnnxClassifier,
        max_batch: int,
        max_wait_ms: float,
        max_queue: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._classifier, self._on_batch = classifier, on_batch
        self._max_batch, self._max_wait_s = max_batch, max_wait_ms / 1000
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._max_queue = max_queue
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that wait for the network."""
        return self._jobs.qsize()

    async def predict(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map an image, uint8 (3, S, S), to logits and probabilities, float32 (K,) each.

        Raises:
            RequestError: too many images are waiting, or the network fails.
        """
        if self._jobs.qsize() >= self._max_queue:
            raise RequestError("busy", "too many images are waiting for this model; try again in a moment.")
        future = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(pixels, future))
        return await future

    def close(self) -> None:
        """End the thread after the images that are waiting."""
        self._jobs.put(None)

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                outputs = self._classifier.predict(np.stack([job.pixels for job in batch]))
                results: list = list(zip(*outputs, strict=True))
            except Exception as error:  # the requests raise it
                results = [error] * len(batch)
            self._on_batch(len(batch))
            batch[0].future.get_loop().call_soon_threadsafe(_set_results, batch, results)

    def _next_batch(self) -> list[_Job]:
        """Wait for an image and return it with those that follow; nothing at the end."""
        batch: list[_Job] = []
        deadline_s = 0.0
        while len(batch) < self._max_batch:
            try:
                wait_s = deadline_s - time.monotonic()
                job = self._jobs.get(timeout=wait_s) if batch and wait_s > 0 else self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if job is None:
                if batch:
                    self._jobs.put(None)  # for the next call
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
