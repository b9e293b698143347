"""Measure one exported file in a process of its own, so that its memory and its threads are its own.

python -m imago.export.measure REQUEST.json      # started by `imago.export.benchmark`; writes RESULT.json
"""

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from imago.export.formats import Predict
from imago.onnx_classifier import OnnxClassifier
from imago.resources import peak_memory_bytes

CHECKPOINT = "checkpoint"  # in place of a module: the network in PyTorch, as eval.py runs it
BATCH_SIZE = 64
_NUM_CALLS, _MAX_SECONDS = 300, 4.0  # per batch size; our own choice
# Calls with one image and with a batch, however long they take, which a median needs; the first are not counted.
_MIN_CALLS, _NUM_WARM_UP = {1: 20, BATCH_SIZE: 5}, {1: 5, BATCH_SIZE: 1}


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        module: of `imago.export`, whose `load` reads `path`; or CHECKPOINT.
        path: the artefact or the checkpoint.
        images: .npy file with uint8 images (N, 3, S, S).
        result: .json file to write.
        num_threads: of the computation; torch takes its number from OMP_NUM_THREADS.
        runtime: the Python package that runs the file, whose size is measured.
        labels: .npy file to write, with the predicted label of each image; empty to measure the time only.
        trust: packages that the checkpoint's network may come from.
    """

    module: str
    path: str
    images: str
    result: str
    num_threads: int
    runtime: str
    labels: str = ""
    trust: tuple[str, ...] = ()


def measure(request: Request) -> dict[str, Any]:
    """Return latencies in ms (p50 and p95 with one image), images per second with 64, and the peak memory in MB."""
    predict = _load(request)
    images = np.load(request.images, mmap_mode="r")
    if request.labels:
        starts = range(0, len(images), BATCH_SIZE)
        labels = [predict(np.array(images[start : start + BATCH_SIZE]))[1].argmax(axis=1) for start in starts]
        np.save(request.labels, np.concatenate(labels))
    single = [1e3 * seconds for seconds in _call_times(predict, images, 1)]
    batched = [BATCH_SIZE / seconds for seconds in _call_times(predict, images, BATCH_SIZE)]
    return {
        "p50_ms": statistics.median(single),
        "p95_ms": float(np.percentile(single, 95)),
        "images_per_s": statistics.median(batched),
        "peak_memory_mb": peak_memory_bytes() / 1e6,
        "install_mb": _install_bytes(request.runtime) / 1e6,
    }


def _load(request: Request) -> Predict:
    path = Path(request.path)
    if request.module == "onnx":  # without torch, as on the machine that it is written for
        return OnnxClassifier(path, request.num_threads).predict
    if request.module != CHECKPOINT:
        return importlib.import_module(f"imago.export.{request.module}").load(path, request.num_threads)
    from imago.inference.load import load_predictor

    return load_predictor(path, "cpu", is_calibrated=False, trust=request.trust).predict


def _call_times(predict: Predict, images: np.ndarray, size: int) -> Iterator[float]:
    """Yield the seconds of calls with `size` images each, until there are enough or the time is over."""
    indices = cycle(range(len(images)))
    start_s = perf_counter()
    for call in range(_NUM_WARM_UP[size] + _NUM_CALLS):
        batch = np.stack([images[index] for index in islice(indices, size)])
        before_s = perf_counter()
        predict(batch)
        now_s = perf_counter()
        if call >= _NUM_WARM_UP[size]:
            yield now_s - before_s
        if now_s - start_s > _MAX_SECONDS and call >= _NUM_WARM_UP[size] + _MIN_CALLS[size]:
            return


def _install_bytes(name: str) -> int:
    """Return the size of an installed package's files, without what it depends on."""
    files = (Path(str(file.locate())) for file in distribution(name).files or ())
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    typed = Request(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(typed.result).write_text(json.dumps(measure(typed)), "utf-8")
