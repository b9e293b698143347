"""Compare an exported file with its checkpoint, on real images and for batches of several sizes."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from imago.errors import UserError
from imago.export.formats import Outputs, Predict
from imago.model.classifier import Classifier
from imago.text import counted

log = logging.getLogger(__name__)

# N images, S side in pixels, K classes
BATCH_SIZES = (1, 2, 7, 64)  # one image, the traced size, one that divides no other, and one for throughput
# Between the checkpoint's two highest logits. Below it their order is rounding: torch and onnxruntime differ by 5e-5 on
# logits up to 212, torch by 3e-5 from itself at another batch size (measured: SimpleCNN, 1,000 val images of shapes).
TIE_GAP = 1e-4
# Our own choice. Labels do not depend on the temperature or the softmax. Rounding gave 7e-7, in the same comparison.
MAX_PROBABILITY_DIFF = 1e-3

# Images per batch for `compare_outputs`: the least common multiple of BATCH_SIZES.
NUM_IMAGES_AT_ONCE = 448


@dataclass
class Agreement:
    """Differences between the outputs of a file and its checkpoint, over all images so far.

    Attributes:
        num_ties: images with another label, where the checkpoint's two highest logits are less than TIE_GAP apart.
        num_disagreements: images with another label in all other cases.
        max_abs_diff_logits: largest difference; NaN if either side is not finite.
        max_abs_diff_probabilities: largest difference, in [0, 1]; NaN if either side is not finite.
    """

    num_images: int = 0
    num_ties: int = 0
    num_disagreements: int = 0
    max_abs_diff_logits: float = 0.0
    max_abs_diff_probabilities: float = 0.0

    def add(self, expected: Outputs, exported: Outputs) -> None:
        """Add the outputs of the checkpoint and of the file for further images."""
        logits, probabilities = expected
        second_largest, largest = np.partition(logits, -2, axis=1)[:, -2:].T
        differs = logits.argmax(axis=1) != exported[0].argmax(axis=1)
        is_tie = differs & (largest - second_largest < TIE_GAP)
        self.num_images += len(logits)
        self.num_ties += int(is_tie.sum())
        self.num_disagreements += int((differs & ~is_tie).sum())
        # np.maximum, unlike max(), returns NaN if either number is NaN
        self.max_abs_diff_logits = float(np.maximum(self.max_abs_diff_logits, np.abs(logits - exported[0]).max()))
        self.max_abs_diff_probabilities = float(
            np.maximum(self.max_abs_diff_probabilities, np.abs(probabilities - exported[1]).max())
        )


def predict_with(classifier: Classifier) -> Predict:
    """Return the function from images to the logits and calibrated probabilities of a classifier on the CPU."""

    def predict(images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            logits = classifier(torch.from_numpy(images))
            return logits.numpy(), (logits / classifier.calibration_temperature).softmax(dim=1).numpy()

    return predict


def compare_outputs(classifier: Classifier, predict: Predict, images: Iterable[np.ndarray]) -> dict[str, Any]:
    """Compare on every image: run the classifier once, and `predict` of the file once for each of BATCH_SIZES.

    The classifier is in eval mode, in float32, on the CPU; `images` are batches of any size, uint8 (N, 3, S, S),
    prepared as the preprocess record says.

    Returns:
        Plain numbers for the report: the largest of each over the batch sizes, and those of each size.

    Raises:
        UserError: if the file does not give the checkpoint's labels and probabilities.
    """
    reference = predict_with(classifier)
    by_batch_size = {size: Agreement() for size in BATCH_SIZES}
    for batch in images:
        expected = in_batches(reference, batch, BATCH_SIZES[-1])
        for size, agreement in by_batch_size.items():
            agreement.add(expected, in_batches(predict, batch, size))
    for size, agreement in by_batch_size.items():
        check_agreement(agreement, size)
    numbers = {str(size): asdict(agreement) for size, agreement in by_batch_size.items()}
    worst = {name: max(differences[name] for differences in numbers.values()) for name in asdict(Agreement())}
    log.info(
        "compared    {images}: every label agrees, {num_ties} ties; differences up to {max_abs_diff_logits:.1e} in "
        "logits, {max_abs_diff_probabilities:.1e} in probabilities".format(
            images=counted(worst["num_images"], "image"), **worst
        )
    )
    return worst | {"label_agreement": 1.0, "by_batch_size": numbers}  # other labels have raised an error above


def check_agreement(agreement: Agreement, batch_size: int) -> None:
    """Raise a `UserError` if labels or probabilities of the file differ from those of the checkpoint."""
    # `not ... <= limit` is also True for NaN
    if agreement.num_disagreements or not agreement.max_abs_diff_probabilities <= MAX_PROBABILITY_DIFF:
        raise UserError(
            f"the exported file differs from the checkpoint, so it was not kept: with batches of {batch_size} "
            f"{agreement.num_disagreements} of {agreement.num_images:,} labels differ, logits by up to "
            f"{agreement.max_abs_diff_logits:.2g}, probabilities by up to {agreement.max_abs_diff_probabilities:.2g}; "
            "try another format, or of ONNX another opset, e.g. opset=18."
        )


def in_batches(function: Predict, images: np.ndarray, size: int) -> Outputs:
    """Call `function` with exactly `size` images at a time, and concatenate its outputs.

    The last batch is filled up with the first images, so that each size is tested even on a few images.
    """
    num_images = len(images)
    indices = np.arange(-(-num_images // size) * size) % num_images
    outputs = [function(images[indices[start : start + size]]) for start in range(0, len(indices), size)]
    logits, probabilities = (np.concatenate(arrays)[:num_images] for arrays in zip(*outputs, strict=True))
    return logits, probabilities
