"""Samples that are there twice: the same bytes, or the same scene scaled, recolored, cropped a little or compressed.

Near ones are found by how their thumbnails correlate once mean and linear trend are taken out of each channel, which
leaves nothing of a sky or a lit wall. On CIFAR-10 it gives 174 test images a near twin among the training images;
173 of them were looked at, and 3 are only alike. Barz and Denzler (Do We Train on Test Data?, J. Imaging 6(6):41,
2020) list 248 by the features of a network. 110 of these are among them; most others of theirs are cropped or moved
by more than a thumbnail shows, and most others of ours are recolored copies that their list does not have.

Not all pairs are compared: each image goes to the cells of its nearest few among sampled images, and pairs within
a cell are, so the time grows as N * sqrt(N). On CIFAR-10 none of the 692 pairs is lost by that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MIN_CORRELATION = 0.92  # below, more pairs on CIFAR-10 are merely alike; looked at down to 0.87
MIN_CONTRAST = 3.0  # levels out of 255, of what is left of the thumbnail; plainer ones correlate by their noise
# Samples of one pattern (drawn shapes, digits) are alike without being copies. The bar is then raised, on Fisher's
# scale atanh(r), to this many times what the closest tenth of random pairs has: 4.3 * 0.27 on CIFAR-10 leaves it where
# it is, 4.3 * 0.74 on 7,000 drawn shapes clears their closest pair.
_TIMES_RANDOM = 4.3
_MAX_CORRELATION = 0.997  # never above: what is compressed once more stays over this

_COARSE_LOSS = 0.01  # 8 x 8 thumbnails of a pair may correlate less than those of 16 x 16 by this much
_NUM_SAMPLED = 2_000
_NUM_NEAREST_CELLS = 5
_MAX_NEIGHBOURS = 8  # of one image in a cell: the frames of a video would give millions of pairs
_BLOCK = 2_048  # rows compared at a time


@dataclass(frozen=True)
class DuplicatePairs:
    """P pairs of images.

    Attributes:
        first: place of the one that comes first in the data set, int64 (P,). Of several images with the same bytes,
            each is paired with the first of them only.
        second: place of the other, int64 (P,).
        is_same: whether the bytes are the same, bool (P,).
        similarity: correlation of the thumbnails, float32 (P,); 1 for the same bytes.
        min_correlation: from which on a pair was taken as near.
    """

    first: np.ndarray
    second: np.ndarray
    is_same: np.ndarray
    similarity: np.ndarray
    min_correlation: float

    def __len__(self) -> int:
        return len(self.first)


def find_duplicates(records: np.ndarray) -> DuplicatePairs:
    """Find them among good images, records (N,) of `RECORD`; N may be 0."""
    firsts, same = _same_bytes(records["content_hash"])
    features, contrast = _features(records["thumbnail"][firsts])
    is_clear = contrast >= MIN_CONTRAST
    places, features = firsts[is_clear], features[is_clear]
    bar = _min_correlation(features)
    near, similarity = _near_pairs(features, bar)
    pairs = np.concatenate([same, places[near]])
    is_same = np.arange(len(pairs)) < len(same)
    similarity = np.concatenate([np.ones(len(same), np.float32), similarity])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return DuplicatePairs(pairs[order, 0], pairs[order, 1], is_same[order], similarity[order], bar)


def group_pairs(num_images: int, pairs: DuplicatePairs) -> np.ndarray:
    """Number the images so that those with a chain of pairs between them share one, the lowest place: int64 (N,)."""
    group = np.arange(num_images)

    def root(place: int) -> int:
        while group[place] != place:
            group[place] = place = group[group[place]]
        return place

    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        low, high = sorted((root(first), root(second)))
        group[high] = low
    for place in np.union1d(pairs.first, pairs.second).tolist():
        group[place] = root(place)
    return group


def _same_bytes(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the first place of each content, sorted, and pairs (first, other) of the rest, int64 (P, 2)."""
    _, first_of, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first = first_of[inverse]
    others = np.flatnonzero(first != np.arange(len(hashes)))
    return np.sort(first_of), np.stack([first[others], others], axis=1)


def _features(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take mean and linear trend out of thumbnails uint8 (N, S, S, 3).

    Returns:
        float32 rows of length 1, (N, 3 * S * S), and what was left of the contrast, float32 (N,), in levels.
    """
    size = thumbnails.shape[1]
    ramp = np.arange(size, dtype=np.float32) - (size - 1) / 2
    ramp /= np.sqrt((ramp**2).sum() * size)
    rest = np.moveaxis(thumbnails, 3, 1).astype(np.float32)  # (N, 3, S, S)
    rest -= rest.mean(axis=(2, 3), keepdims=True)
    for trend in (np.broadcast_to(ramp, (size, size)), np.broadcast_to(ramp[:, None], (size, size))):
        rest -= (rest * trend).sum(axis=(2, 3), keepdims=True) * trend
    rows = rest.reshape(len(rest), 3 * size**2)
    length = np.linalg.norm(rows, axis=1)
    rows /= np.maximum(length, 1e-6)[:, None]
    return rows, length / np.sqrt(rows.shape[1])


def _min_correlation(features: np.ndarray) -> float:
    sampled = features[_spread(len(features), _NUM_SAMPLED)]
    if len(sampled) < 20:  # too few pairs to tell what is usual
        return MIN_CORRELATION
    usual = np.quantile((sampled @ sampled.T)[np.triu_indices(len(sampled), 1)], 0.9)
    raised = np.tanh(_TIMES_RANDOM * np.arctanh(np.clip(usual, 0, 0.9)))
    return float(np.clip(raised, MIN_CORRELATION, _MAX_CORRELATION))


def _spread(count: int, num_wanted: int) -> np.ndarray:
    """Choose places out of `count`, evenly spread."""
    num_taken = min(num_wanted, count)
    return np.arange(num_taken) * count // max(1, num_taken)


def _near_pairs(features: np.ndarray, bar: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the pairs that correlate by `bar` or more, int64 (P, 2), and by how much, float32 (P,)."""
    coarse = _coarse(features)
    found = [np.zeros((0, 2), np.int64)]
    for members in _cells(coarse):
        for start in range(0, len(members), _BLOCK):
            rows, columns = _close(coarse[members[start : start + _BLOCK]] @ coarse[members].T, bar - _COARSE_LOSS)
            pairs = np.stack([members[rows + start], members[columns]], axis=1)
            found.append(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    parts = [pairs[start : start + _BLOCK].T for start in range(0, len(pairs), _BLOCK)]
    exact = [np.einsum("pf,pf->p", features[first], features[second]) for first, second in parts]
    similarity = np.concatenate([np.zeros(0, np.float32), *exact])
    return pairs[similarity >= bar], similarity[similarity >= bar].clip(max=1)


def _coarse(features: np.ndarray) -> np.ndarray:
    """Halve the resolution of features (N, 3 * S * S): a quarter of the work; rows of length 1 again."""
    size = int(np.sqrt(features.shape[1] // 3))
    blocks = features.reshape(len(features), 3, size // 2, 2, size // 2, 2)
    halved = blocks.mean(axis=(3, 5)).reshape(len(features), 3 * (size // 2) ** 2)
    return halved / np.maximum(np.linalg.norm(halved, axis=1, keepdims=True), 1e-6)


def _close(correlation: np.ndarray, bar: float) -> tuple[np.ndarray, np.ndarray]:
    """Give rows and columns of what lies over the bar; of a row with too many, the highest."""
    is_close = correlation >= bar
    for row in np.flatnonzero(is_close.sum(axis=1) > _MAX_NEIGHBOURS + 1):
        highest = np.argpartition(correlation[row], -_MAX_NEIGHBOURS - 1)[-_MAX_NEIGHBOURS - 1 :]
        is_close[row] = False
        is_close[row, highest] = True
    rows, columns = np.nonzero(is_close)
    return rows, columns


def _cells(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the members of each cell, int64, sorted; each image is a member of its nearest few."""
    centers = features[_spread(len(features), max(1, int(2 * np.sqrt(len(features)))))]
    num_nearest = min(_NUM_NEAREST_CELLS, len(centers))
    nearest = [np.zeros((0, num_nearest), np.int64)]
    for start in range(0, len(features), _BLOCK):
        correlation = features[start : start + _BLOCK] @ centers.T
        nearest.append(np.argpartition(correlation, -num_nearest, axis=1)[:, -num_nearest:])
    cell = np.concatenate(nearest).ravel()
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(1, len(centers)))
    yield from (members for members in np.split(order // num_nearest, bounds) if len(members) > 1)
