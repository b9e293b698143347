"""Transforms of the user's own: seeded draws of every generator, what they may return, num_classes."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from imago.augment.batch_augment import BatchAugment
from imago.augment.own_transforms import build_batch_transform, transform_batch, transform_samples
from imago.augment.sample_transforms import transform_images
from imago.augment.settings import Augment
from imago.errors import ConfigError, DataError

V2 = "torchvision.transforms.v2"


class Shift:
    """Add one number, drawn from three generators; remember the draws."""

    def __init__(self) -> None:
        self.draws: list[tuple[float, float, float]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.draws.append((torch.rand(()).item(), np.random.random(), random.random()))
        return image + int(sum(self.draws[-1]) * 20)


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (count, 3, 8, 6), dtype=np.uint8)


def states() -> tuple[bytes, Any, Any]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()


# Single images


def test_a_sample_is_transformed_the_same_alone_and_in_any_batch_and_the_generators_are_restored():
    images, indices, first = samples(6), np.arange(40, 46), Shift()
    before = states()
    together = images.copy()
    transform_samples(together, [first], (3, 2, indices))
    assert states() == before
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for number in reversed(range(6)):
        alone = images[number : number + 1].copy()
        transform_samples(alone, [Shift()], (3, 2, indices[number : number + 1]))
        np.testing.assert_array_equal(alone[0], together[number])
    assert all(len({draw[generator] for draw in first.draws}) == 6 for generator in range(3))


def test_draws_differ_by_seed_epoch_and_transform_and_repeated_samples_have_keys_of_their_own():
    images, indices, one, two = samples(2), np.array([7, 7]), Shift(), Shift()
    for seed, epochs in ((0, 0), (0, 1), (1, 0), (0, np.array([0, 5 + (1 << 32)]))):
        transform_samples(images.copy(), [one, two], (seed, epochs, indices))
    draws = [*one.draws, *two.draws]
    assert len(set(draws)) == 8  # two transforms, four keys
    assert one.draws[0] == one.draws[1] == one.draws[6]
    assert one.draws[6] != one.draws[7]


def test_own_transforms_follow_the_built_in_ones():
    images, key = samples(3), (0, 0, np.arange(3))
    augment = Augment(gray_probability=1.0, extra=[lambda image: image + torch.arange(3)[:, None, None].byte()])
    assert augment.has_single_image_transforms
    gray = transform_images(images, Augment(gray_probability=1.0), key)
    shades = np.arange(3, dtype=np.uint8)[:, None, None]
    np.testing.assert_array_equal(transform_images(images, augment, key), gray + shades)


def test_a_transform_gets_a_contiguous_tensor_also_of_a_channels_last_batch():
    images = samples(2).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    augment = Augment(extra=[lambda image: 255 - image.view(3, -1).view(3, 8, 6)])
    flat = transform_images(images, augment, (0, 0, np.arange(2)))
    np.testing.assert_array_equal(flat, 255 - images)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda image: image / 255, r"Tensor float32 \(3, 8, 6\)"),
        (lambda image: image.numpy(), r"ndarray uint8 \(3, 8, 6\)"),
        (lambda image: image[:1], r"Tensor uint8 \(1, 8, 6\)"),
        (lambda image: None, "NoneType"),
        (lambda image: (image, 1), r"a tuple of 2 \(Tensor uint8 \(3, 8, 6\), int 1\)"),
    ],
)
def test_another_result_is_one_line_that_names_the_transform(function: Any, got: str):
    wanted = r"Tensor uint8 \(3, 8, 6\)"
    with pytest.raises(DataError, match=rf"^augment.extra: .*<lambda> returned {got}, wanted {wanted}\.$"):
        transform_samples(samples(1), [function], (0, 0, np.arange(1)))


# Batches


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, 8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def apply(nodes: list[Any], key: tuple[int, int, int] = (0, 0, 0), **settings: Any) -> tuple[Tensor, Tensor]:
    augment = BatchAugment(Augment(extra_batch=nodes, **settings), 3, seed=0)
    images, labels = augment.mix(*batch(), key)
    return augment.extra(images, labels, key)


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_num_classes_is_filled_in_and_labels_become_soft(name: str):
    before = states()
    images, labels = apply([{"_target_": f"{V2}.{name}"}])
    assert states() == before
    assert (images.shape, labels.shape) == ((8, 3, 8, 6), (8, 3))
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    torch.manual_seed(9)
    again = apply([{"_target_": f"{V2}.{name}"}])
    assert torch.equal(images, again[0])
    others = [apply([{"_target_": f"{V2}.{name}"}], key)[0] for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({image.numpy().tobytes() for image in (images, *others)}) == 4


def test_a_typed_number_of_classes_is_kept_and_mixed_labels_can_be_mixed_again():
    assert apply([{"_target_": f"{V2}.MixUp", "num_classes": 5}])[1].shape == (8, 5)
    images, labels = apply([{"_target_": f"{V2}.CutMix"}], mixup_alpha=0.4)
    assert labels.shape == (8, 3)
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    with pytest.raises(ConfigError, match="takes no 'alhpa'; did you mean alpha"):
        apply([{"_target_": f"{V2}.MixUp", "alhpa": 1}])


def shuffled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(images))
    return images[order], labels[order]


@pytest.mark.parametrize(
    "transform", [v2.RandomErasing(1.0), v2.Compose([v2.RandomErasing(1.0), v2.MixUp(num_classes=3)]), shuffled]
)
def test_a_transform_gets_images_and_labels(transform: Any):
    images, labels = transform_batch(*batch(), [build_batch_transform(transform, 3)], (0, 0, 0, 0))
    assert (images.shape, len(labels)) == ((8, 3, 8, 6), 8)
    assert not torch.equal(images, batch()[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda images, labels: (images[:4], labels),
        lambda images, labels: images,
        lambda images, labels: (images, labels, 1),
    ],
)
def test_a_batch_of_another_kind_is_one_line(function: Any):
    with pytest.raises(DataError, match=r"^augment.extra_batch: .*<lambda> returned .*, wanted \(images, labels\)"):
        transform_batch(*batch(), [build_batch_transform(function, 3)], (0, 0, 0, 0))


# Settings


@pytest.mark.parametrize(
    ("name", "value"), [("extra", [3]), ("extra_batch", [{"sigma": 1}]), ("extra", {"_target_": "a.b"})]
)
def test_an_item_that_is_no_node_is_refused(name: str, value: Any):
    with pytest.raises(ConfigError, match=f"augment.{name} has .*; each item must be a node"):
        Augment(**{name: value})


def test_transforms_are_built_once_and_only_when_used():
    Augment(extra=[{"_target_": "torchvision.nothing.Like"}])
    augment = Augment(extra=[{"_target_": f"{V2}.RandomInvert", "p": 1.0}])
    images = samples(2)
    np.testing.assert_array_equal(transform_images(images, augment, (0, 0, np.arange(2))), 255 - images)
    assert augment.extra_transforms is augment.extra_transforms
