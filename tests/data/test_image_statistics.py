"""The default preprocessing follows the size of the images, and its mean and std are those of the prepared pixels."""

import numpy as np
import pytest
from drawn_images import photo

from imago.data.image_statistics import channel_statistics, preprocess_for_images, shrink
from imago.images import resize_and_crop


def test_mean_and_std_are_those_of_all_pixels():
    images = [photo(0, 8), photo(1, 20)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    statistics = channel_statistics(images)
    assert statistics["mean"] == pytest.approx(pixels.mean(axis=0))
    assert statistics["std"] == pytest.approx(pixels.std(axis=0))


def test_the_std_of_a_constant_channel_is_not_0():
    assert channel_statistics([np.zeros((4, 4, 3), np.uint8)])["std"] == (1 / 255,) * 3


@pytest.mark.parametrize(
    ("sizes", "size", "resize"),
    [([(32, 32)], 32, 32), ([(20, 64), (28, 30)], 28, 28), ([(64, 65)], 224, 256), ([(32, 32), (300, 200)], 224, 256)],
)
def test_small_images_keep_their_size_and_others_are_resized(sizes: list[tuple[int, int]], size: int, resize: int):
    images = [photo(number, 400)[:height, :width] for number, (height, width) in enumerate(sizes)]
    preprocess = preprocess_for_images([shrink(image) for image in images])
    assert (preprocess.size, preprocess.resize, preprocess.crop) == (size, resize, "center")
    statistics = channel_statistics(resize_and_crop(image, preprocess) for image in images)
    assert {"mean": preprocess.mean, "std": preprocess.std} == statistics
