"""Images of several requests share batches, each gets its own outputs, and errors of the network reach the requests."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx_files import write_channel_means

from imago.onnx_classifier import OnnxClassifier
from imago.serve.batching import Batcher
from imago.serve.errors import RequestError

SIZE = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def classifier(tmp_path: Path) -> OnnxClassifier:
    return OnnxClassifier(write_channel_means(tmp_path / "a.onnx", SIZE), 1)


def predict_all(batcher: Batcher, images: np.ndarray) -> list:
    async def run() -> list:
        try:
            return await asyncio.gather(*(batcher.predict(image) for image in images), return_exceptions=True)
        finally:
            batcher.close()

    return asyncio.run(run())


@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_image_gets_its_own_outputs_in_batches_of_limited_size(classifier: OnnxClassifier, num_threads: int):
    sizes: list[int] = []
    results = predict_all(Batcher(classifier, num_threads, 16, 0, 100, sizes.append), IMAGES)
    expected = classifier.predict(IMAGES)
    np.testing.assert_allclose([logits for logits, _ in results], expected[0], rtol=1e-5)
    np.testing.assert_allclose([probabilities for _, probabilities in results], expected[1], rtol=1e-5)
    assert sum(sizes) == len(IMAGES)
    assert 1 < max(sizes) <= 16


def test_an_incomplete_batch_waits_for_more_images(classifier: OnnxClassifier):
    sizes: list[int] = []
    batcher = Batcher(classifier, 1, 2, 60_000, 100, sizes.append)

    async def run() -> None:
        first = asyncio.create_task(batcher.predict(IMAGES[0]))
        await asyncio.sleep(0.05)
        assert sizes == []
        await asyncio.gather(first, batcher.predict(IMAGES[1]))
        batcher.close()

    asyncio.run(run())
    assert sizes == [2]


class Slow(OnnxClassifier):
    """A network that takes 30 ms for each image."""

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import time

        time.sleep(0.03 * len(images))
        return super().predict(images)


def test_a_slow_network_gets_small_batches(tmp_path: Path):
    sizes: list[int] = []
    slow = Slow(write_channel_means(tmp_path / "a.onnx", SIZE), 1)
    predict_all(Batcher(slow, 1, 16, 0, 100, sizes.append), IMAGES)
    assert sum(sizes) == len(IMAGES)
    assert sizes[-2] <= 3


def test_more_images_than_the_queue_takes_are_refused(classifier: OnnxClassifier):
    slow = Batcher(classifier, 1, 100, 500, 5, lambda _: None)
    results = predict_all(slow, IMAGES[:20])
    refused = [result for result in results if isinstance(result, RequestError)]
    assert refused
    assert {error.code for error in refused} == {"busy"}
    assert len(results) - len(refused) >= 5


def test_an_error_of_the_network_is_raised_by_each_request_and_the_next_batch_runs(classifier: OnnxClassifier):
    batcher = Batcher(classifier, 1, 4, 0, 100, lambda _: None)

    async def run() -> None:
        wrong = np.zeros((3, SIZE, SIZE + 1), np.uint8)
        results = await asyncio.gather(*(batcher.predict(wrong) for _ in range(4)), return_exceptions=True)
        assert {type(result) for result in results} == {ValueError}
        await batcher.predict(IMAGES[0])
        batcher.close()

    asyncio.run(run())
