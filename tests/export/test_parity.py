"""The comparison of an exported file with its checkpoint: equal labels, ties, and disagreements."""

import numpy as np
import pytest
import torch
from torch import nn

from imago.errors import UserError
from imago.export.parity import (
    BATCH_SIZES,
    MAX_PROBABILITY_DIFF,
    Agreement,
    check_agreement,
    compare_outputs,
    in_batches,
)
from imago.images import Preprocess
from imago.model.classifier import Classifier

SIZE = 2
PREPROCESS = Preprocess(SIZE, SIZE, "center", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def classifier() -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    return Classifier(net, ["a", "b", "c"], PREPROCESS).eval()


class Exported:
    """Replaces an exported file: the classifier itself, with changed logits."""

    def __init__(self, change=lambda logits: logits):
        self.model = classifier()
        self.change = change
        self.sizes: list[int] = []

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(images))
        with torch.inference_mode():
            logits = self.change(self.model(torch.from_numpy(images)))
        return logits.numpy(), logits.softmax(dim=1).numpy()


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def outputs(*logits: list[float]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(logits, np.float32)
    exponents = np.exp(array)
    return array, exponents / exponents.sum(axis=1, keepdims=True)


def count(expected: tuple, found: tuple) -> Agreement:
    agreement = Agreement()
    agreement.add(expected, found)
    return agreement


def test_the_same_outputs_have_no_differences():
    assert count(outputs([3, 1, 2], [0, 0, 1]), outputs([3, 1, 2], [0, 0, 1])) == Agreement(num_images=2)


def test_another_label_is_a_disagreement_and_the_largest_difference_is_kept():
    found = count(outputs([3, 1, 2], [0, 0, 1]), outputs([3, 1, 3.5], [0, 0.25, 1]))
    assert (found.num_images, found.num_disagreements, found.num_ties) == (2, 1, 0)
    assert found.max_abs_diff_logits == 1.5


@pytest.mark.parametrize(("gap", "is_tie"), [(0.9e-4, True), (1.1e-4, False)])
def test_another_label_within_the_rounding_of_the_checkpoint_is_a_tie(gap: float, is_tie: bool):
    found = count(outputs([1 + gap, 1, 0]), outputs([1, 1 + gap, 0]))
    assert (found.num_ties, found.num_disagreements) == ((1, 0) if is_tie else (0, 1))


def test_another_label_is_refused_however_close_the_probabilities_are():
    agreement = count(outputs([1.0002, 1, 0]), outputs([1, 1.0002, 0]))
    assert agreement.max_abs_diff_probabilities < MAX_PROBABILITY_DIFF
    with pytest.raises(UserError, match="1 of 1 labels differ"):
        check_agreement(agreement, 1)


def test_outputs_that_are_not_finite_are_refused():
    agreement = count(outputs([float("nan"), 1, 2]), outputs([float("nan"), 1, 2]))
    agreement.add(outputs([3, 1, 2]), outputs([3, 1, 2]))
    assert np.isnan(agreement.max_abs_diff_probabilities)
    with pytest.raises(UserError, match="by up to nan"):
        check_agreement(agreement, 1)


@pytest.mark.parametrize("batches", [[3], [100, 20]])
def test_every_image_is_compared_at_every_batch_size(batches: list[int]):
    exported = Exported()
    report = compare_outputs(classifier(), exported.predict, map(samples, batches))
    assert set(exported.sizes) == set(BATCH_SIZES) == {1, 2, 7, 64}
    assert {size: numbers["num_images"] for size, numbers in report["by_batch_size"].items()} == dict.fromkeys(
        ("1", "2", "7", "64"), sum(batches)
    )
    assert (report["num_images"], report["num_disagreements"], report["label_agreement"]) == (sum(batches), 0, 1.0)


def test_a_file_that_fails_at_one_batch_size_only_is_refused_with_that_size():
    exported = Exported(lambda logits: -logits if len(logits) == 7 else logits)
    with pytest.raises(UserError, match=r"with batches of 7 \d+ of 20 labels differ") as caught:
        compare_outputs(classifier(), exported.predict, [samples(20)])
    assert "\n" not in str(caught.value)


def test_a_wrong_temperature_is_refused_though_every_label_agrees():
    with pytest.raises(UserError, match="0 of 20 labels differ, .* probabilities by up to"):
        compare_outputs(classifier(), Exported(lambda logits: logits / 2).predict, [samples(20)])


def test_probabilities_are_compared_with_those_of_the_calibrated_checkpoint():
    def calibrated(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return Exported().predict(images)[0], Exported(lambda logits: logits / 2).predict(images)[1]

    checkpoint = classifier()
    checkpoint.calibration_temperature = 2.0
    compare_outputs(checkpoint, calibrated, [samples(20)])


def test_batches_are_of_exactly_the_size_and_give_each_image_its_own_output():
    seen = []

    def double(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(images))
        return images * 2, images * 3

    twice, thrice = in_batches(double, np.arange(5), 4)
    assert seen == [4, 4]
    assert (twice.tolist(), thrice.tolist()) == ([0, 2, 4, 6, 8], [0, 3, 6, 9, 12])
