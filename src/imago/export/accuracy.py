"""Check a file whose precision changes labels: its accuracy may be lower than the checkpoint's by little only."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imago.errors import UserError
from imago.export.formats import Predict
from imago.export.parity import BATCH_SIZES, TIE_GAP, in_batches, predict_with
from imago.model.classifier import Classifier
from imago.statistics.paired import PairedComparison, compare_paired
from imago.text import counted

log = logging.getLogger(__name__)

_NUM_NAMED = 3  # operators in a message; our own choice

Batch = tuple[np.ndarray, np.ndarray]  # images uint8 (B, 3, S, S) and labels int64 (B,)


def compare_accuracy(
    classifier: Classifier, predict: Predict, batches: Iterable[Batch], max_drop: float, report: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare the accuracy of a file with that of its checkpoint on the same images, at each of BATCH_SIZES.

    Args:
        classifier: in eval mode, in float32, on the CPU.
        predict: runs the file.
        batches: prepared images and their labels, as indices of the classes of the classifier.
        max_drop: the accuracy that the file may lose, in points; the lower end of the 95 % interval of the loss counts.
        report: of the written file; with `operator_errors`, as of int8, the message names the largest.

    Returns:
        Plain numbers for the report.

    Raises:
        UserError: if the file loses more, its outputs are not finite, or its labels depend on the batch size.
    """
    parts = [_compare_batch(classifier, predict, *batch) for batch in batches]
    remedy = _remedy(report)
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if not np.isfinite(found["squared_error"]).all():
        raise UserError(f"the outputs of the file contain NaN or infinity, so it was not kept; {remedy}")
    num_ties = _check_batch_sizes(found)
    predicted, is_correct = found["predicted"][:, -1], found["labels"] == found["expected"]
    compared = compare_paired(is_correct, found["labels"] == predicted)
    accuracy, agreement = float(is_correct.mean()), float((predicted == found["expected"]).mean())
    text = _describe(compared, accuracy)
    if -compared.interval_95[1] > max_drop / 100:
        raise UserError(f"the file was not kept: {text}; max_accuracy_drop={max_drop:g} allows less. {remedy}")
    log.info("accuracy    %s; %.2f %% of the labels agree", text, 100 * agreement)
    return {
        "num_images": compared.num_images,
        "acc": accuracy + compared.difference,
        "checkpoint_acc": accuracy,
        "acc_difference": compared.difference,
        "acc_difference_interval_95": list(compared.interval_95),
        "label_agreement": agreement,
        "num_ties": num_ties,
        "max_abs_diff_logits": float(found["largest_error"].max()),
    }


def _compare_batch(classifier: Classifier, predict: Predict, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return arrays with a row for each of B images.

    `predicted` are the labels of the file at each batch size, (B, 4); `gap` is the difference of its two highest
    logits; `squared_error` is the mean square of the differences to the logits of the checkpoint.
    """
    expected, _ = in_batches(predict_with(classifier), images, BATCH_SIZES[-1])
    outputs = [in_batches(predict, images, size)[0] for size in BATCH_SIZES]
    second_largest, largest = np.partition(outputs[-1], -2, axis=1)[:, -2:].T
    errors = np.abs(outputs[-1] - expected)
    return {
        "labels": labels,
        "expected": expected.argmax(axis=1),
        "predicted": np.stack([logits.argmax(axis=1) for logits in outputs], axis=1),
        "gap": largest - second_largest,
        "largest_error": errors.max(axis=1),
        "squared_error": np.square(errors, dtype=np.float64).mean(axis=1),
    }


def _check_batch_sizes(found: dict[str, np.ndarray]) -> int:
    """Raise if labels depend on the batch size; return the number of ties.

    A tie has two highest logits that are less apart than the file differs from the checkpoint (root mean square): one
    value that is rounded to the next step moves the following ones by about as much.
    """
    largest_gap = max(TIE_GAP, float(np.sqrt(found["squared_error"].mean())))
    differs = found["predicted"] != found["predicted"][:, -1:]
    is_tie = found["gap"] < largest_gap
    if (wrong := differs[~is_tie]).any():
        size = BATCH_SIZES[int(wrong.sum(axis=0).argmax())]
        raise UserError(
            f"the file was not kept: {wrong.any(axis=1).sum():,} of {len(differs):,} labels depend on the batch size, "
            f"most with {size}; type precision=fp32, or another format."
        )
    return int(differs.any(axis=1).sum())


def _remedy(report: Mapping[str, Any]) -> str:
    if not (errors := report.get("operator_errors")):
        return "Type precision=fp32."
    worst = list(errors)[:_NUM_NAMED]
    shares = ", ".join(f"{name} {errors[name]:.1%}" for name in worst)
    return (
        f"The largest errors are those of {shares}: keep_float=[{','.join(worst)}] computes these in float; or type "
        "precision=fp16."
    )


def _describe(compared: PairedComparison, accuracy: float) -> str:
    low, lost, high = (
        0.0 - 100 * value for value in (compared.interval_95[1], compared.difference, compared.interval_95[0])
    )
    return (
        f"{accuracy + compared.difference:.2%} on {counted(compared.num_images, 'image')}, the checkpoint "
        f"{accuracy:.2%}: {lost:.2f} points lost (95 % interval {low:.2f} to {high:.2f})"
    )
