"""Find duplicate images: the same bytes, or the same scene scaled, recolored, cropped a little or compressed.

Near duplicates are found by the correlation of their thumbnails, after mean and linear trend are removed from each
channel, so that a sky or an evenly lit wall has no features. On CIFAR-10, 174 test images have a near duplicate among
the training images; 173 of them were inspected, and 3 are only similar. Barz and Denzler (Do We Train on Test Data?,
J. Imaging 6(6):41, 2020) list 248, found by the features of a network. 110 images are in both lists; most of the others
in theirs are cropped or shifted by more than a thumbnail shows, and most of the others in ours are recolored copies.

Not all pairs are compared: each image is assigned to the cells of its nearest few among sampled images, and the pairs
within a cell are compared, so that the time grows as N * sqrt(N). On CIFAR-10 this loses none of the 692 pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imago.data.stratified import evenly_spread

# Legend: N images, S side of a thumbnail in pixels, F features of a thumbnail (3 * S * S), P pairs

MIN_CORRELATION = 0.92  # below, more pairs of CIFAR-10 are only similar; inspected down to 0.87
MIN_CONTRAST = 3.0  # levels out of 255, of the thumbnail without trend; with less, the noise correlates
# Images of one pattern (drawn shapes, digits) are similar without being copies. The threshold is then raised, on
# Fisher's scale atanh(r), to this many times the 0.9 quantile of random pairs: 4.3 * 0.27 on CIFAR-10 leaves it as it
# is, 4.3 * 0.74 on 7,000 drawn shapes is above their most similar pair.
_RANDOM_PAIR_FACTOR = 4.3
_MAX_CORRELATION = 0.997  # highest threshold: a copy that is compressed once more stays over this

_NUM_SAMPLED = 2_000  # images for the quantile of random pairs: two million pairs; our own choice
_COARSE_MARGIN = 0.01  # 8 x 8 thumbnails of a pair may correlate less than those of 16 x 16 by this much
_NUM_NEAREST_CELLS = 5  # loses none of the 692 pairs of CIFAR-10
_MAX_NEIGHBORS = 8  # of one image in a cell, our own choice: the frames of a video would make millions of pairs
_NUM_ROWS_AT_ONCE = 2_048  # a block of correlations with 10,000 members then takes 82 MB in float32


@dataclass(frozen=True)
class DuplicatePairs:
    """P pairs of images; of several images with the same bytes, each is paired with the first of them only."""

    first: np.ndarray  # index of the image that comes first in the dataset, int64 (P,)
    second: np.ndarray  # index of the other image, int64 (P,)
    is_same: np.ndarray  # whether the bytes are the same, bool (P,)
    similarity: np.ndarray  # correlation of the thumbnails, float32 (P,); 1 for the same bytes
    min_correlation: float  # threshold for near duplicates

    def __len__(self) -> int:
        return len(self.first)


def find_duplicates(records: np.ndarray) -> DuplicatePairs:
    """Find the duplicates among good images, records (N,) of `IMAGE_RECORD_DTYPE`; N may be 0."""
    _, first_indices, inverse = np.unique(records["content_hash"], return_index=True, return_inverse=True)
    first = first_indices[inverse]
    others = np.flatnonzero(first != np.arange(len(records)))
    same_pairs = np.stack([first[others], others], axis=1)

    distinct = np.sort(first_indices)
    features, contrast = _normalized_thumbnails(records["thumbnail"][distinct])
    has_contrast = contrast >= MIN_CONTRAST
    distinct, features = distinct[has_contrast], features[has_contrast]
    threshold = _min_correlation(features)
    near_pairs, similarity = _near_pairs(features, threshold)

    pairs = np.concatenate([same_pairs, distinct[near_pairs]])
    is_same = np.arange(len(pairs)) < len(same_pairs)
    similarity = np.concatenate([np.ones(len(same_pairs), np.float32), similarity])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return DuplicatePairs(pairs[order, 0], pairs[order, 1], is_same[order], similarity[order], threshold)


def group_pairs(num_images: int, pairs: DuplicatePairs) -> np.ndarray:
    """Return a group number per image, (N,), equal for images that are connected by a chain of pairs."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs.first, pairs.second)), shape=(num_images, num_images))
    return connected_components(edges, directed=False)[1]


def _normalized_thumbnails(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove mean and linear trend from thumbnails uint8 (N, S, S, 3).

    Return float32 rows of length 1, (N, F), and the remaining contrast in levels, float32 (N,).
    """
    size = thumbnails.shape[1]
    ramp = np.arange(size, dtype=np.float32) - (size - 1) / 2
    ramp /= np.sqrt((ramp**2).sum() * size)
    detrended = np.moveaxis(thumbnails, 3, 1).astype(np.float32)  # (N, 3, S, S)
    detrended -= detrended.mean(axis=(2, 3), keepdims=True)
    for trend in (np.broadcast_to(ramp, (size, size)), np.broadcast_to(ramp[:, None], (size, size))):
        detrended -= (detrended * trend).sum(axis=(2, 3), keepdims=True) * trend
    rows = detrended.reshape(len(detrended), 3 * size**2)  # (N, F)
    length = np.linalg.norm(rows, axis=1)
    rows /= np.maximum(length, 1e-6)[:, None]
    return rows, length / np.sqrt(rows.shape[1])


def _min_correlation(features: np.ndarray) -> float:
    sampled = features[evenly_spread(len(features), _NUM_SAMPLED)]
    if len(sampled) < 20:  # fewer than 190 pairs are too few for a quantile; our own choice
        return MIN_CORRELATION
    random_correlation = np.quantile((sampled @ sampled.T)[np.triu_indices(len(sampled), 1)], 0.9)
    # 0.9 keeps arctanh finite; above 0.64, the threshold is limited by _MAX_CORRELATION.
    threshold = np.tanh(_RANDOM_PAIR_FACTOR * np.arctanh(np.clip(random_correlation, 0, 0.9)))
    return float(np.clip(threshold, MIN_CORRELATION, _MAX_CORRELATION))


def _near_pairs(features: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that correlate by `threshold` or more, int64 (P, 2), and their correlation, float32 (P,)."""
    coarse = _halve_resolution(features)
    candidates = [np.zeros((0, 2), np.int64)]
    for members in _cells(coarse):
        for start in range(0, len(members), _NUM_ROWS_AT_ONCE):
            correlation = coarse[members[start : start + _NUM_ROWS_AT_ONCE]] @ coarse[members].T
            rows, columns = _pairs_above(correlation, threshold - _COARSE_MARGIN)
            pairs = np.stack([members[rows + start], members[columns]], axis=1)
            candidates.append(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1))
    pairs = np.unique(np.concatenate(candidates), axis=0)
    parts = [pairs[start : start + _NUM_ROWS_AT_ONCE].T for start in range(0, len(pairs), _NUM_ROWS_AT_ONCE)]
    exact = [np.einsum("pf,pf->p", features[first], features[second]) for first, second in parts]
    similarity = np.concatenate([np.zeros(0, np.float32), *exact])
    return pairs[similarity >= threshold], similarity[similarity >= threshold].clip(max=1)


def _halve_resolution(features: np.ndarray) -> np.ndarray:
    """Halve the resolution of features (N, F), for a quarter of the work; rows (N, F / 4) have length 1 again."""
    size = int(np.sqrt(features.shape[1] // 3))
    blocks = features.reshape(len(features), 3, size // 2, 2, size // 2, 2)  # (N, 3, S / 2, 2, S / 2, 2)
    halved = blocks.mean(axis=(3, 5)).reshape(len(features), 3 * (size // 2) ** 2)
    return halved / np.maximum(np.linalg.norm(halved, axis=1, keepdims=True), 1e-6)


def _pairs_above(correlation: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the values over the threshold; of a row with too many, the highest."""
    is_above = correlation >= threshold
    for row in np.flatnonzero(is_above.sum(axis=1) > _MAX_NEIGHBORS + 1):
        highest = np.argpartition(correlation[row], -_MAX_NEIGHBORS - 1)[-_MAX_NEIGHBORS - 1 :]
        is_above[row] = False
        is_above[row, highest] = True
    rows, columns = np.nonzero(is_above)
    return rows, columns


def _cells(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the members of each cell, int64, sorted; each image is a member of its nearest few cells."""
    # 2 * sqrt(N) cells of about sqrt(N) / 2 images each, times _NUM_NEAREST_CELLS.
    centers = features[evenly_spread(len(features), max(1, int(2 * np.sqrt(len(features)))))]
    num_nearest = min(_NUM_NEAREST_CELLS, len(centers))
    nearest = [np.zeros((0, num_nearest), np.int64)]
    for start in range(0, len(features), _NUM_ROWS_AT_ONCE):
        correlation = features[start : start + _NUM_ROWS_AT_ONCE] @ centers.T
        nearest.append(np.argpartition(correlation, -num_nearest, axis=1)[:, -num_nearest:])
    cell = np.concatenate(nearest).ravel()
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(1, len(centers)))
    yield from (members for members in np.split(order // num_nearest, bounds) if len(members) > 1)
