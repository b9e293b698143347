"""The drawn shapes: same pixels on every machine, and only the outline distinguishes the classes."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from imago.data.shapes import CLASS_NAMES, MEAN, SPLIT_SIZES, STD, ShapesDataModule, draw_split

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return {split: draw_split(split) for split in SPLIT_SIZES}


def linear_accuracy(splits: Splits, features: dict[str, np.ndarray]) -> float:
    """Fit logistic regression to standardised train features, shape (N, F), and return its test accuracy."""
    mean, std = features["train"].mean(axis=0), features["train"].std(axis=0)
    # On the pixels, C=0.002 has the best test accuracy of 1e-5 .. 1; a finer tol adds 0.2 points at thrice the time.
    classifier = LogisticRegression(C=0.002, tol=1e-2, max_iter=1000)
    classifier.fit((features["train"] - mean) / std, splits["train"][1])
    return float(classifier.score((features["test"] - mean) / std, splits["test"][1]))


def test_every_image_and_label_is_the_published_one(splits: Splits) -> None:
    digest = hashlib.sha256()
    for split in ("train", "val", "test"):
        images, labels = splits[split]
        digest.update(images.tobytes())
        digest.update(labels.astype("<i8").tobytes())
    assert digest.hexdigest() == "41631562e423a9fae339cbaa05c42d38082ac809fed016dd227805589ccdf150"


def test_images_are_uint8_channels_first_and_labels_int64(splits: Splits) -> None:
    images, labels = splits["val"]
    assert images.shape == (1000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.shape == (1000,)
    assert labels.dtype == np.int64


def test_class_names_are_in_the_order_an_image_folder_gives_them() -> None:
    assert list(CLASS_NAMES) == sorted(set(CLASS_NAMES))
    assert len(CLASS_NAMES) == 10


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_every_class_has_the_same_number_of_images(splits: Splits, split: str) -> None:
    assert np.bincount(splits[split][1]).tolist() == [SPLIT_SIZES[split] // 10] * 10


def test_no_image_occurs_twice_in_or_across_the_splits(splits: Splits) -> None:
    samples = [image.tobytes() for images, _ in splits.values() for image in images]
    assert len(set(samples)) == sum(SPLIT_SIZES.values())


@pytest.mark.parametrize("count", [0, 1, 37, 512])
def test_the_first_samples_do_not_depend_on_their_number(splits: Splits, count: int) -> None:
    images, labels = draw_split("test", count)
    np.testing.assert_array_equal(images, splits["test"][0][:count])
    np.testing.assert_array_equal(labels, splits["test"][1][:count])


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='validation' is not one of train, val, test"):
        draw_split("validation")


def test_mean_and_std_are_those_of_the_train_pixels(splits: Splits) -> None:
    pixels = splits["train"][0] / 255.0
    np.testing.assert_allclose(MEAN, pixels.mean(axis=(0, 2, 3)), atol=5e-5)
    np.testing.assert_allclose(STD, pixels.std(axis=(0, 2, 3)), atol=5e-5)


def test_mean_color_and_border_color_do_not_depend_on_the_class(splits: Splits) -> None:
    images, labels = splits["train"]
    border = np.concatenate([images[:, :, :2].reshape(5000, 3, -1), images[:, :, -2:].reshape(5000, 3, -1)], axis=2)
    for pixels in (images.reshape(5000, 3, -1), border):
        by_class = np.stack([pixels[labels == label].mean(axis=(0, 2)) for label in range(10)])
        # Three standard errors of a class's mean: backgrounds spread by 39 gray levels over 500 images.
        np.testing.assert_allclose(by_class, np.broadcast_to(pixels.mean(axis=(0, 2)), (10, 3)), atol=5.6)


def test_color_statistics_predict_the_class_hardly_better_than_chance(splits: Splits) -> None:
    features = {
        split: np.concatenate([images.mean(axis=(2, 3)), images.std(axis=(2, 3))], axis=1)
        for split, (images, _) in splits.items()
    }
    assert linear_accuracy(splits, features) < 0.15


@pytest.mark.slow
def test_a_linear_classifier_cannot_solve_it_from_the_pixels(splits: Splits) -> None:
    features = {split: images.reshape(len(images), -1).astype(np.float32) for split, (images, _) in splits.items()}
    assert 0.2 < linear_accuracy(splits, features) < 0.6


def test_the_datamodule_returns_the_drawn_images_sorted_by_class(splits: Splits) -> None:
    data = ShapesDataModule(batch_size=8, num_workers=0, augment={}, seed=0)
    data.set_up_data()
    assert data.drawn == []
    for split, part in data.splits.named():
        images, labels = splits[split]
        assert part.labels.tolist() == sorted(labels.tolist())
        for index in (0, 7, len(labels) - 1):
            drawn_index = int(part.names[index].split("/")[2].removesuffix(".png"))
            np.testing.assert_array_equal(part.images[index], images[drawn_index])
    assert data.splits.train.names[:2] == ("train/arrow/0000.png", "train/arrow/0010.png")


def test_the_fingerprint_is_the_published_one() -> None:
    data = ShapesDataModule(batch_size=8, num_workers=0, augment={}, seed=0)
    data.set_up_data()
    assert data.fingerprint() == "46447d049169ff52"
