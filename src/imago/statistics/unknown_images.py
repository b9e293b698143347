"""Mark images that are unlike those of the training, by a score of the logits, and measure how well this works."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imago.seeding import SETS_KEY, random_permutation
from imago.statistics.conformal import num_needed, rank_of_level
from imago.statistics.groups import design_effect, effective_interval, interval_factor, share_interval
from imago.statistics.intervals import Interval
from imago.text import counted, printable

# Legend: N images of known classes, M of unknown ones, K classes

UNKNOWN_DETECTOR_KEY = "unknown_detector"  # in calibration.json and the metadata of an ONNX file
UNKNOWN_IMAGES_KEY = "unknown_images"  # in metrics.json
_LEVEL = "95"  # percent of the known images that are kept
_MAX_CLASSES = 200  # with more, the matrices are larger than 2 MB as JSON; our own choice
_ROUNDING = 1e-4  # that the cut-off is lowered by: logits of torch and onnxruntime differ by 1e-5; our own choice


@dataclass(frozen=True, eq=False)
class UnknownDetector:
    """A score of logits that is low for images unlike those of the training, and the cut-off below which it marks them.

    It is the cosine between whitened logits and the mean of the nearest class, in [-1, 1]. At least 95 % of new images
    like those of val reach the cut-off, on average over the images that it may be fitted on.
    """

    cutoff: float
    num_images: int  # of val that the cut-off is fitted on
    mean: np.ndarray  # logits (K,), subtracted first
    whitening: np.ndarray  # maps logits to uncorrelated ones of variance 1 within a class, (K, K)
    directions: np.ndarray  # whitened means of the classes, in rows of length 1, (K, K)

    @classmethod
    def from_dict(cls, values: Any, num_classes: int) -> "UnknownDetector | None":
        """Return what `to_dict` wrote, None for None; raise ValueError, TypeError or KeyError for anything else."""
        if values is None:
            return None
        arrays = [np.array(values[name], np.float64) for name in ("mean", "whitening", "directions")]
        found = cls(float(values["cutoff"]), int(values["num_images"]), *arrays)
        is_valid = [array.shape for array in arrays] == [(num_classes,), *[(num_classes,) * 2] * 2]
        is_valid = is_valid and bool(np.isfinite([found.cutoff, *map(np.sum, arrays)]).all())
        if not is_valid or found.num_images < num_needed(_LEVEL):
            raise ValueError(f"{UNKNOWN_DETECTOR_KEY} does not fit {num_classes} classes, or has no valid numbers")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for JSON."""
        return vars(self) | {key: value.tolist() for key, value in vars(self).items() if isinstance(value, np.ndarray)}

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the score of each row of logits (N, K), less the cut-off: negative if it is marked, float64 (N,)."""
        whitened = (logits - self.mean) @ self.whitening
        norms = np.maximum(np.linalg.norm(whitened, axis=1), np.finfo(float).tiny)
        return (whitened @ self.directions.T).max(axis=1) / norms - self.cutoff


def fit_detector(logits: np.ndarray, labels: np.ndarray) -> UnknownDetector | None:
    """Fit the score on half of val, logits (N, K) and labels int (N,), and the cut-off on the other half.

    Return None with too few images or too many classes, see `missing_detector_note`. The score is our own choice,
    compared with others in docs/trust.md; the covariance is that of Ledoit and Wolf 2004.
    """
    order, num_images, num_classes = random_permutation(len(labels), SETS_KEY), len(labels) // 2, logits.shape[1]
    if num_images < num_needed(_LEVEL) or num_classes > _MAX_CLASSES:
        return None
    from sklearn.covariance import ledoit_wolf  # imported here because it takes a second

    values, others = logits[order[num_images:]].astype(np.float64), labels[order[num_images:]]
    mean, is_of_class = values.mean(axis=0), np.eye(num_classes)[others]
    # A class without images has no direction.
    means = is_of_class.T @ (values - mean) / np.maximum(is_of_class.sum(axis=0), 1)[:, None]
    variances, axes = np.linalg.eigh(ledoit_wolf(values - mean - means[others], assume_centered=True)[0])
    whitening = axes / np.sqrt(np.maximum(variances, (variances[-1] or 1) * np.finfo(np.float32).eps))
    directions = means @ whitening
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.finfo(float).tiny)
    detector = UnknownDetector(0.0, num_images, mean, whitening, directions)
    scores = np.sort(detector.scores(logits[order[:num_images]]))[::-1]
    return replace(detector, cutoff=float(scores[rank_of_level(_LEVEL, num_images) - 1]) - _ROUNDING)


def missing_detector_note(detector: Any) -> str:
    """Return a note on a network that has no detector, and what it needs; "" if it has one."""
    needs = f"that needs {2 * num_needed(_LEVEL)} images of val and at most {_MAX_CLASSES} classes"
    return "" if detector else f"unknown images are not marked: {needs}, an older run eval.py run=RUN calibrate=fit"


def measure_unknown(known: np.ndarray, unknown: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Return AUROC, FPR at 95 % and the shares that are marked, given scores known (N,) and unknown (M,).

    `groups` has the name or number of the group of each known image, (N,); None if they are independent.
    """
    lowest_kept = np.sort(known)[::-1][-(-int(_LEVEL) * len(known) // 100) - 1]
    shares = {"fpr_at_95": (unknown >= lowest_kept, None), "known_marked": (known < 0, groups)}
    shares |= {"unknown_marked": (unknown < 0, None)}
    auroc, interval = auroc_with_interval(known, unknown, groups)
    measured = {"num_known": len(known), "num_unknown": len(unknown), "auroc": auroc, "auroc_interval": list(interval)}
    for name, (is_one, of_group) in shares.items():
        measured |= {name: float(is_one.mean()), f"{name}_interval": list(share_interval(is_one, of_group))}
    return measured


def auroc_with_interval(known: np.ndarray, unknown: np.ndarray, groups: np.ndarray | None) -> tuple[float, Interval]:
    """Return how often a known image has a higher score than an unknown one, and the 95 % interval; ties count half.

    The variance is that of DeLong et al. 1988, with the design effect of groups (as in Obuchowski 1997); the interval
    is Wilson's for the number of images that has this variance. Simulated in the tests.
    """
    from scipy.stats import rankdata  # imported here because it takes 0.5 s

    num_known, num_unknown, ranks = len(known), len(unknown), rankdata(np.concatenate([known, unknown]))
    above = (ranks[:num_known] - rankdata(known)) / num_unknown  # share of the unknown images below each known one
    below = (ranks[num_known:] - rankdata(unknown)) / num_known
    auroc, num_independent = float(above.mean()), num_known / (1 if groups is None else design_effect(above, groups))
    variance, fewest = above.var() / num_independent + below.var() / num_unknown, min(num_independent, num_unknown)
    is_known = variance > 0 and fewest > 1
    num_effective = auroc * (1 - auroc) / variance / interval_factor(int(fewest)) if is_known else fewest
    return auroc, effective_interval(auroc, float(num_effective))


def describe_unknown(measured: Mapping[str, Any]) -> dict[str, str]:
    """Format the entry of metrics.json: the output of `measure_unknown`, and what was read; {} for an empty one."""
    if not measured:
        return {}
    lines = {"unknown": f"{counted(measured['num_unknown'], 'image')} of {printable(measured['data'])}"}
    keys = ("auroc", "fpr_at_95", "unknown_marked", "known_marked")
    for name, key in zip(("AUROC", "FPR at 95 %", "unknown marked", "known marked"), keys, strict=True):
        lines[name] = "{:.2%}, 95 % interval {:.2%} to {:.2%}".format(measured[key], *measured[f"{key}_interval"])
    return lines
