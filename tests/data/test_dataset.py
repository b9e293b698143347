"""Batches of images in memory. `FileDataset` is tested with the datamodules of files."""

import numpy as np
import pytest
import torch

from imago.augment.settings import Augment
from imago.data.dataset import ArrayDataset, LabeledArray
from imago.data.sampling import BatchIndices

IMAGES = LabeledArray(
    np.random.default_rng(0).integers(1, 256, (40, 3, 8, 8), dtype=np.uint8),
    np.arange(40, dtype=np.int64) % 7,
    tuple(map(str, range(40))),
)
AUGMENT = Augment(crop_padding_px=2, flip_probability=0.5)


def test_augmentation_depends_on_seed_and_epoch_and_keeps_the_labels():
    indices = np.arange(40)[::-1].copy()
    keys = [(1, 0), (1, 1), (2, 0), (1, 0)]
    batches = [ArrayDataset(IMAGES, AUGMENT, seed).__getitems__(BatchIndices(epoch, indices)) for seed, epoch in keys]
    first, *others, again = [images for images, _ in batches]
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)
    for _, labels in batches:
        np.testing.assert_array_equal(labels, IMAGES.labels[indices])


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_writing_into_a_batch_does_not_change_the_dataset(augment: Augment | None):
    dataset = ArrayDataset(IMAGES, augment)
    key = BatchIndices(0, np.arange(40))
    before = dataset.__getitems__(key)[0].clone()
    dataset.__getitems__(key)[0].zero_()
    assert torch.equal(dataset.__getitems__(key)[0], before)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_of_images_in_memory_have_zeros_or_a_reflection_at_their_edges(mode: str):
    dataset = ArrayDataset(IMAGES, Augment(crop_padding_px=2, crop_padding_mode=mode))  # of images without zeros
    images, _ = dataset.__getitems__(BatchIndices(0, np.arange(40)))
    assert bool((images == 0).any()) == (mode == "zeros")


def test_images_in_memory_can_be_cropped_and_resized_too():
    augment = Augment(flip_probability=0.5, random_resized_crop_scale=(0.35, 1.0))
    dataset = ArrayDataset(IMAGES, augment, seed=1)
    images, labels = dataset.__getitems__(BatchIndices(0, np.arange(40)))
    alone, _ = dataset.__getitems__(BatchIndices(0, np.array([7])))
    assert (images.shape, images.dtype) == ((40, 3, 8, 8), torch.uint8)
    assert torch.equal(alone[0], images[7])
    np.testing.assert_array_equal(labels, IMAGES.labels)
    assert not np.array_equal(images, IMAGES.images)
    # A crop of the whole area is the image itself.
    dataset = ArrayDataset(IMAGES, Augment(random_resized_crop_scale=(1.0, 1.0)))
    whole, _ = dataset.__getitems__(BatchIndices(0, np.arange(3)))
    np.testing.assert_array_equal(whole, IMAGES.images[:3])
