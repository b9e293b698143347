"""Mark images that are unlike those of the training, by a score of the logits, and measure how well this works."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imago.statistics.calibration import row_chunks
from imago.statistics.conformal import num_needed, rank_of_level
from imago.statistics.groups import design_effect, effective_interval, interval_factor, share_interval
from imago.statistics.intervals import Interval
from imago.text import printable

# Legend: N images of known classes, M of unknown ones, K classes

KNOWN_CUTOFF_KEY = "known_cutoff"  # in calibration.json and the metadata of an ONNX file
UNKNOWN_IMAGES_KEY = "unknown_images"  # in metrics.json
_LEVEL = "95"  # percent of the known images that are kept
_ROUNDING = 1e-4  # that the cut-off is lowered by: logits of torch and onnxruntime differ by 1e-5; our own choice


@dataclass(frozen=True)
class KnownCutoff:
    """The score (see `known_score`) that 95 % or more of new images like those of val reach.

    This holds on average over the images that `score` may be fitted on, `num_images` of val.
    """

    score: float
    num_images: int

    @classmethod
    def from_dict(cls, values: Any) -> "KnownCutoff | None":
        """Return the cut-off from `asdict`, None for None; raise ValueError, TypeError or KeyError for the rest."""
        if values is None:
            return None
        cutoff = cls(float(values["score"]), int(values["num_images"]))
        if not math.isfinite(cutoff.score) or cutoff.num_images < num_needed(_LEVEL):
            raise ValueError(f"{KNOWN_CUTOFF_KEY} is {values!r}")
        return cutoff

    def marks(self, logits: np.ndarray) -> list[bool]:
        """Return for each row of logits (N, K) whether its image is unlike those of the training."""
        return (known_score(logits) < self.score).tolist()


def known_score(logits: np.ndarray) -> np.ndarray:
    """Return a score of each image that is high for those like the training images, float64 (N,): the energy, negated.

    Source: Liu et al. 2020 (arXiv:2010.03759); compared with others in docs/trust.md.
    """
    from scipy.special import logsumexp  # imported here because scipy takes 0.3 s

    return np.concatenate([logsumexp(logits[rows].astype(np.float64), axis=1) for rows in row_chunks(logits)])


def fit_cutoff(logits: np.ndarray) -> KnownCutoff | None:
    """Return the cut-off by the logits (N, K) of val; None if there are too few images."""
    num_images = len(logits)
    if num_images < num_needed(_LEVEL):
        return None
    scores = np.sort(known_score(logits))[::-1]
    return KnownCutoff(float(scores[rank_of_level(_LEVEL, num_images) - 1]) - _ROUNDING, num_images)


def missing_cutoff_note(cutoff: KnownCutoff | None) -> str:
    """Return a note on the cut-off that a network lacks, and what it needs; "" if it has one."""
    remedy = f"type eval.py run=RUN calibrate=fit, with {num_needed(_LEVEL)} images of val or more"
    return "" if cutoff else f"no cut-off for images unlike those of the training was fitted; {remedy}"


def measure_unknown(
    known: np.ndarray, unknown: np.ndarray, groups: np.ndarray | None, cutoff: KnownCutoff | None
) -> dict[str, Any]:
    """Return AUROC, FPR at 95 % and the shares that the cut-off marks (None without it), with 95 % intervals.

    Args:
        known: scores of images of the classes of the network, (N,).
        unknown: scores of other images, (M,).
        groups: name or number of the group of each known image, (N,); None if they are independent.
        cutoff: as stored with the network.
    """
    auroc, interval = auroc_with_interval(known, unknown, groups)
    share, share_95 = fpr_with_interval(known, unknown, groups)
    measured: dict[str, Any] = {"num_known": len(known), "num_unknown": len(unknown)}
    measured |= {"auroc": auroc, "auroc_interval": list(interval)}
    measured |= {"fpr_at_95": share, "fpr_at_95_interval": list(share_95)}
    for name, scores, of_group in (("known", known, groups), ("unknown", unknown, None)):
        marked = scores < cutoff.score if cutoff else None
        measured[f"{name}_marked"] = None if marked is None else float(marked.mean())
        measured[f"{name}_marked_interval"] = None if marked is None else list(share_interval(marked, of_group))
    return measured


def auroc_with_interval(
    known: np.ndarray, unknown: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, Interval]:
    """Return how often a known image has a higher score than an unknown one, and the 95 % interval; ties count half.

    The variance is that of DeLong et al. 1988, with the design effect of groups (as in Obuchowski 1997); the interval
    is Wilson's for the number of images that has this variance. Simulated in the tests.
    """
    of_known, of_unknown = _shares_below(known, unknown), 1 - _shares_below(unknown, known)
    auroc, effect = float(of_known.mean()), 1.0 if groups is None else design_effect(of_known, groups)
    num_known, num_unknown = len(known) / effect, len(unknown)
    variance = of_known.var() / num_known + of_unknown.var() / num_unknown
    if variance == 0 or min(len(known), num_unknown) == 1:
        return auroc, effective_interval(auroc, min(num_known, num_unknown))
    fewest = min(num_unknown, len(known if groups is None else np.unique(groups)))
    return auroc, effective_interval(auroc, float(auroc * (1 - auroc) / variance / interval_factor(fewest)))


def fpr_with_interval(
    known: np.ndarray, unknown: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, Interval]:
    """Return the share of unknown images that are kept where 95 % of the known ones are, and its 95 % interval.

    The interval is Wilson's, for a number of images that accounts for the known ones too, whose quantile varies: by as
    much as the share changes within one standard deviation of the rank. Simulated in the tests.
    """
    scores, rank = np.sort(known)[::-1], -(-int(_LEVEL) * len(known) // 100)
    num_kept = int((unknown >= scores[rank - 1]).sum())
    effect = 1.0 if groups is None else design_effect((known >= scores[rank - 1]).astype(float), groups)
    deviation = math.sqrt(rank * (1 - rank / (len(known) + 1)) * effect)
    ends = np.clip(np.rint([rank - deviation, rank + deviation]).astype(int), 1, len(known))
    change = np.diff([(unknown >= scores[end - 1]).mean() for end in ends])[0] / 2
    share = (num_kept + 1) / (len(unknown) + 2)  # never 0 or 1
    num_effective = 1 / (1 / len(unknown) + change**2 / (share * (1 - share)))
    return num_kept / len(unknown), effective_interval(num_kept / len(unknown), float(num_effective))


def describe_unknown(measured: Mapping[str, Any]) -> dict[str, str]:
    """Format the entry of metrics.json: the output of `measure_unknown`, and what was read; {} for an empty one."""
    if not measured:
        return {}

    def text(name: str) -> str:
        low, high = measured[f"{name}_interval"]
        return f"{measured[name]:.2%}, 95 % interval {low:.2%} to {high:.2%}"

    others = {"could not be read": measured["num_unreadable"], "other files were left out": measured["num_left_out"]}
    images = f"{measured['num_unknown']:,} images of {printable(measured['data'])}"
    lines = {
        "unknown": ", ".join([images, *(f"{number:,} {what}" for what, number in others.items() if number)]),
        "AUROC": text("auroc"),
        "FPR at 95 %": f"{text('fpr_at_95')}: share of the unknown, where 95 % of the known are kept",
    }
    if measured["known_marked"] is None:
        return lines | {"marked": missing_cutoff_note(None)}
    return lines | {"marked": f"of the unknown {text('unknown_marked')}; of the known {text('known_marked')}"}


def _shares_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each score the share of the others that is lower, float (N,); equal ones count half."""
    ordered = np.sort(others)
    counts = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return counts / (2 * len(others))
