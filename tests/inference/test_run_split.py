"""Every image of a split is evaluated once; a lost image, or an output that is not finite, is an error."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imago.data.dataset import LabeledArray, LabeledFiles, Splits
from imago.errors import DataError
from imago.inference.run_split import (
    images_digest,
    images_in_memory,
    match_classes,
    run_split,
    sampled_digest,
    split_samples,
)

NAMES = ("a", "b", "c")


class Echo:
    """Predicts an image's first pixel as its class."""

    calibration_temperature = 2.0
    predicts_classes = True
    preprocess = "the network's"

    def __init__(self, class_names: tuple[str, ...] = NAMES) -> None:
        self.class_names = class_names

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = 4 * np.eye(3, dtype=np.float32)[images[:, 0, 0, 0]]
        shares = np.exp(logits / 2)
        return logits, shares / shares.sum(axis=1, keepdims=True)


def make_data(num_dropped: int = 0) -> SimpleNamespace:
    by_split = {}
    for number, split in enumerate(("train", "val", "test")):
        labels = (np.arange(7) + number) % 3
        images = np.broadcast_to(labels[:, None, None, None], (7, 3, 2, 2)).astype(np.uint8)
        by_split[split] = LabeledArray(images, labels, tuple(map(str, range(7))))

    def loader(split: str) -> list:
        samples, batches = by_split[split], np.array_split(np.arange(7 - num_dropped), 3)
        return [(torch.from_numpy(samples.images[b]), torch.from_numpy(samples.labels[b])) for b in batches]

    return SimpleNamespace(splits=Splits(NAMES, **by_split), class_names=NAMES, evaluation_loader=loader)


@pytest.mark.parametrize(("split", "count"), [("val", 7), ("test", 7), ("all", 21)])
def test_every_image_is_evaluated_once_and_in_order(split: str, count: int):
    data = make_data()
    result = run_split(Echo(), data, split)
    assert len(result.labels) == count
    assert result.is_correct.all()
    assert result.calibration_temperature == 2
    assert result.probability == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    assert data.preprocess == "the network's"


def test_labels_are_those_of_the_network():
    result = run_split(Echo(class_names=("c", "a", "b")), make_data(), "val")
    assert result.labels.tolist() == [(label + 1) % 3 for label in [1, 2, 0, 1, 2, 0, 1]]
    assert not result.is_correct.any()


def test_a_lost_image_is_an_error():
    with pytest.raises(DataError, match="6 of 7 images of test were read"):
        run_split(Echo(), make_data(num_dropped=1), "test")


def test_outputs_that_are_not_finite_are_refused():
    broken = Echo()
    broken.predict = lambda images: (np.full((len(images), 3), np.nan), np.ones((len(images), 3)))
    with pytest.raises(DataError, match="outputs contain NaN or infinity"):
        run_split(broken, make_data(), "val")


def test_outputs_with_targets_of_their_own_are_not_compared_with_labels_even_if_the_names_agree():
    other = Echo()
    other.predicts_classes = False
    with pytest.raises(DataError, match="predicts a, b, c with targets of its own, and not the classes of the data"):
        run_split(other, make_data(), "test")


def test_classes_are_matched_in_any_order_and_unicode_form():
    assert match_classes(["cafe\u0301", "a"], ["a", "b", "caf\u00e9"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="the network lacks: 'A'; the network has 'a'"):
        match_classes(["A"], ["a"])


def test_the_digest_of_images_depends_on_names_classes_and_contents_but_not_on_their_order(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
    samples = LabeledArray(pixels, np.array([0, 1, 2, 0, 1]), tuple("vwxyz"))
    first = images_digest(samples, NAMES)
    assert images_digest(samples.take(np.array([4, 1, 0, 3, 2])), NAMES) == first
    assert images_digest(replace(samples, labels=(samples.labels + 1) % 3), ("c", "a", "b")) == first
    changed = pixels.copy()
    changed[4, 2, 3, 3] ^= 1
    others = [replace(samples, images=changed), replace(samples, names=tuple("vwxya")), samples.take(np.arange(4))]
    others.append(replace(samples, labels=np.array([0, 1, 2, 1, 1])))
    assert len({first, *(images_digest(other, NAMES) for other in others)}) == 5

    files = []
    for folder, last in (("one", b"z"), ("two", b"z"), ("three", b"y")):
        (tmp_path / folder).mkdir()
        for name, content in (("a.png", b"xyz"), ("b.png", b"xy" + last)):
            (tmp_path / folder / name).write_bytes(content)
        sizes = np.full(2, 3)
        files.append(LabeledFiles(tmp_path / folder, ("a.png", "b.png"), sizes, sizes, np.array([0, 1])))
    one, two, three = (images_digest(part, NAMES) for part in files)
    assert one == two != three  # equal sizes, names and labels
    (tmp_path / "one" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b.png cannot be read: No such file or directory; try again\."):
        images_digest(files[0], NAMES)


def test_the_digest_of_a_sample_depends_on_the_contents_of_each_split_and_reads_few_files(tmp_path: Path):
    splits = make_data().splits
    changed = []
    for name, samples in splits.items():
        images = samples.images.copy()
        images[5, 0, 0, 0] ^= 1
        changed.append(replace(splits, **{name: replace(samples, images=images)}))
    assert len({sampled_digest(part) for part in (splits, *changed)}) == 4
    assert sampled_digest(make_data().splits) == sampled_digest(splits)

    sizes, names = np.full(1200, 3), tuple(f"{index}.png" for index in range(1200))
    digests = []
    for content in (b"xyz", b"xyz", b"xya"):
        for name in names[::4]:  # there are no other files
            (tmp_path / name).write_bytes(content)
        files = LabeledFiles(tmp_path, names, sizes, sizes, np.zeros(1200, np.int64))
        digests.append(sampled_digest(replace(splits, train=files)))
    assert digests[0] == digests[1] != digests[2]


def test_indices_of_all_splits_together_are_the_right_images():
    splits = make_data().splits
    images = images_in_memory(split_samples(SimpleNamespace(splits=splits), "all"), [0, 6, 7, 13, 14, 20])
    expected = [splits.train.images[[0, 6]], splits.val.images[[0, 6]], splits.test.images[[0, 6]]]
    assert list(images) == [0, 6, 7, 13, 14, 20]
    np.testing.assert_array_equal(np.stack(list(images.values())), np.concatenate(expected).transpose(0, 2, 3, 1))
