"""Copies are found although they were changed, and images that are only similar are not."""

import io

import numpy as np
import pytest
from drawn_images import photo, records_of
from PIL import Image

from imago.data import shapes
from imago.data.image_record import examine_pixels
from imago.dataset_check import duplicates
from imago.dataset_check.duplicates import find_duplicates, group_pairs


def changed(pixels: np.ndarray, how: str) -> np.ndarray:
    image = Image.fromarray(pixels)
    side = image.width
    if how == "compressed":
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=30)
        return np.asarray(Image.open(file))
    if how == "scaled":
        return np.asarray(image.resize((side * 3 // 2, side * 2)))
    if how == "cropped":
        return np.asarray(image.crop((1, 1, side - 1, side - 1)))
    return (pixels * 0.5).astype(np.uint8)


def pairs_of(records: np.ndarray) -> set[tuple[int, int]]:
    found = find_duplicates(records)
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize("how", ["compressed", "scaled", "cropped", "darker"])
def test_a_changed_copy_is_near_its_original(how: str):
    samples = [photo(seed) for seed in range(60)]
    found = find_duplicates(records_of(*samples, changed(samples[17], how)))
    assert (found.first.tolist(), found.second.tolist()) == ([17], [60])
    assert not found.is_same[0]
    assert found.similarity[0] >= duplicates.MIN_CORRELATION


def test_equal_images_are_the_same_and_pair_with_the_first_of_them_only():
    samples = [photo(seed) for seed in range(30)]
    found = find_duplicates(records_of(*samples, samples[3], samples[3]))
    assert (found.first.tolist(), found.second.tolist()) == ([3, 3], [30, 31])
    assert found.is_same.all()
    assert found.similarity.tolist() == [1, 1]


def test_plain_images_and_skies_are_no_duplicates():
    height = np.broadcast_to(np.linspace(90, 160, 32)[:, None], (32, 32))
    skies = [np.stack([height + shift, height + shift, np.full((32, 32), 200.0)], axis=2) for shift in range(30)]
    noise = [rng.normal(0, 2, (32, 32, 3)) for rng in map(np.random.default_rng, range(30))]
    samples = [(sky + grain).clip(0, 255).astype(np.uint8) for sky, grain in zip(skies, noise, strict=True)]
    plain = [np.full((32, 32, 3), level, np.uint8) for level in range(20)]
    assert pairs_of(records_of(*samples, *plain)) == set()


def test_similar_drawn_shapes_are_no_duplicates_and_a_copy_among_them_is_found():
    images = shapes.render_split("val")[0][:400]
    copy = changed(images[50].transpose(1, 2, 0), "scaled")
    records = np.concatenate([examine_pixels(images.transpose(0, 2, 3, 1), len(images)), records_of(copy)])
    assert pairs_of(records) == {(50, len(images))}


def test_cells_find_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    samples = [photo(seed, 16) for seed in range(250)]
    copies = [
        (samples[number] * rng.uniform(0.4, 1) + rng.normal(0, 8, (16, 16, 3))).clip(0, 255) for number in range(110)
    ]
    records = records_of(*samples, *(copy.astype(np.uint8) for copy in copies))
    features, _ = duplicates._normalized_thumbnails(records["thumbnail"])
    all_pairs = np.argwhere(np.triu(features @ features.T, 1) >= duplicates.MIN_CORRELATION)
    assert len(all_pairs) > 100
    assert pairs_of(records) == set(map(tuple, all_pairs.tolist()))


def test_features_do_not_depend_on_brightness_contrast_and_linear_light():
    thumbnail = records_of(photo(4))["thumbnail"].astype(np.float64) * 0.3
    slope = np.arange(16)[:, None, None] * 4.0 + np.arange(16)[None, :, None] * 2.0
    lit = (thumbnail * 1.5 + slope + 20).round().clip(0, 255).astype(np.uint8)
    features, _ = duplicates._normalized_thumbnails(np.concatenate([thumbnail.round().astype(np.uint8), lit]))
    assert features[0] @ features[1] > 0.999
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)


def test_many_frames_of_one_scene_give_pairs_in_proportion_to_their_number():
    rng = np.random.default_rng(0)
    frames = [(photo(0, 16) + rng.integers(0, 4, (16, 16, 3))).clip(0, 255).astype(np.uint8) for _ in range(100)]
    found = find_duplicates(records_of(*frames))
    assert 99 <= len(found) < 100 * 5 * 9
    assert len(np.unique(group_pairs(100, found))) == 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_few_images_have_no_duplicates(count: int):
    records = examine_pixels([photo(seed) for seed in range(count)], count)
    assert len(find_duplicates(records)) == 0


def test_a_chain_of_pairs_is_one_group():
    one, two = (np.array(indices) for indices in ([1, 3, 5], [3, 6, 7]))
    pairs = duplicates.DuplicatePairs(one, two, np.zeros(3, bool), np.ones(3), 0.92)
    groups = group_pairs(9, pairs)
    assert np.array_equal(groups[:, None] == groups, np.equal.outer(*[[0, 1, 2, 1, 4, 5, 1, 5, 8]] * 2))
