"""Every image of a split is evaluated once; a lost image, or an output that is not finite, is an error."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imago.data.dataset import LabeledArray, Splits
from imago.errors import DataError
from imago.inference.run_split import images_in_memory, match_classes, run_split, split_samples

NAMES = ("a", "b", "c")


class Echo:
    """Predicts an image's first pixel as its class."""

    class_names = NAMES
    calibration_temperature = 2.0

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = 4 * np.eye(3, dtype=np.float32)[images[:, 0, 0, 0]]
        shares = np.exp(logits / 2)
        return logits, shares / shares.sum(axis=1, keepdims=True)


def make_data(dropped: int = 0) -> SimpleNamespace:
    parts = {}
    for number, split in enumerate(("train", "val", "test")):
        labels = (np.arange(7) + number) % 3
        images = np.broadcast_to(labels[:, None, None, None], (7, 3, 2, 2)).astype(np.uint8)
        parts[split] = LabeledArray(images, labels, tuple(map(str, range(7))))

    def loader(split: str) -> list:
        part = parts[split]
        rows = np.arange(len(part) - dropped)
        return [(torch.from_numpy(part.images[r]), torch.from_numpy(part.labels[r])) for r in np.array_split(rows, 3)]

    return SimpleNamespace(splits=Splits(NAMES, **parts), evaluation_loader=loader)


@pytest.mark.parametrize(("split", "count"), [("val", 7), ("test", 7), ("all", 21)])
def test_every_image_is_evaluated_once_and_in_order(split: str, count: int):
    result = run_split(Echo(), make_data(), split, np.arange(3))
    assert len(result.labels) == count
    assert result.is_correct.all()
    assert result.calibration_temperature == 2
    assert result.confidence == pytest.approx(np.exp(2) / (np.exp(2) + 2))


def test_labels_are_those_of_the_network():
    result = run_split(Echo(), make_data(), "val", np.array([1, 2, 0]))
    assert result.labels.tolist() == [(label + 1) % 3 for label in [1, 2, 0, 1, 2, 0, 1]]
    assert not result.is_correct.any()


def test_a_lost_image_is_an_error():
    with pytest.raises(DataError, match="6 of 7 images of test were read"):
        run_split(Echo(), make_data(dropped=1), "test", np.arange(3))


def test_outputs_that_are_not_finite_are_refused():
    broken = Echo()
    broken.predict = lambda images: (np.full((len(images), 3), np.nan), np.ones((len(images), 3)))
    with pytest.raises(DataError, match="outputs contain NaN or infinity"):
        run_split(broken, make_data(), "val", np.arange(3))


def test_classes_are_matched_in_any_order_and_unicode_form():
    assert match_classes(["cafe\u0301", "a"], ["a", "b", "caf\u00e9"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="the network lacks: 'A'; the network has 'a'"):
        match_classes(["A"], ["a"])


def test_rows_of_all_splits_together_are_the_right_images():
    splits = make_data().splits
    found = images_in_memory(split_samples(SimpleNamespace(splits=splits), "all"), [0, 6, 7, 13, 14, 20])
    expected = [splits.train.images[[0, 6]], splits.val.images[[0, 6]], splits.test.images[[0, 6]]]
    assert list(found) == [0, 6, 7, 13, 14, 20]
    np.testing.assert_array_equal(np.stack(list(found.values())), np.concatenate(expected).transpose(0, 2, 3, 1))
