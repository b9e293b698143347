"""Whether an exported file says what its checkpoint says, on real images and for batches of several sizes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
import torch

from imago.artifact import OnnxClassifier
from imago.errors import UserError
from imago.model.classifier import Classifier

# N images, S side in pixels, K classes
BATCH_SIZES = (1, 2, 7, 64)  # one, the traced one, one that divides nothing, and one for throughput
# Between the checkpoint's two highest logits. Below it their order is rounding: torch and onnxruntime differ by 5e-5 on
# logits up to 212, torch by 3e-5 from itself at another batch size (measured: SimpleCNN, 1,000 val images of shapes).
TIE_GAP = 1e-4
# A label cannot show a wrong temperature or softmax. Rounding gave 7e-7, in the same comparison.
MAX_PROBABILITY_DIFF = 1e-3

_CHUNK = 448  # images held at once: the smallest number that every batch size divides

Outputs = tuple[np.ndarray, np.ndarray]  # logits and probabilities, each float32 (N, K)


class ParityError(UserError):
    """An exported file that does not say what its checkpoint says."""


@dataclass
class Agreement:
    """How outputs compare with the checkpoint's, over all images so far.

    Attributes:
        num_ties: other label, where the checkpoint's two highest logits are less than TIE_GAP apart.
        num_disagreements: other label, without that excuse.
        max_abs_diff_logits: NaN if either side is not finite.
        max_abs_diff_probabilities: likewise.
    """

    num_images: int = 0
    num_ties: int = 0
    num_disagreements: int = 0
    max_abs_diff_logits: float = 0.0
    max_abs_diff_probabilities: float = 0.0

    def add(self, expected: Outputs, found: Outputs) -> None:
        """Count further images."""
        logits, probabilities = expected
        second, first = np.partition(logits, -2, axis=1)[:, -2:].T
        differs = logits.argmax(axis=1) != found[0].argmax(axis=1)
        is_tie = differs & (first - second < TIE_GAP)
        self.num_images += len(logits)
        self.num_ties += int(is_tie.sum())
        self.num_disagreements += int((differs & ~is_tie).sum())
        # np.maximum, unlike max(), passes a NaN on
        self.max_abs_diff_logits = float(np.maximum(self.max_abs_diff_logits, np.abs(logits - found[0]).max()))
        self.max_abs_diff_probabilities = float(
            np.maximum(self.max_abs_diff_probabilities, np.abs(probabilities - found[1]).max())
        )


@dataclass
class Parity:
    """The comparison by batch size; every size has seen every image."""

    by_batch_size: dict[int, Agreement] = field(default_factory=lambda: {size: Agreement() for size in BATCH_SIZES})

    @property
    def worst(self) -> Agreement:
        """The largest of each number over the batch sizes."""
        largest = np.max([astuple(part) for part in self.by_batch_size.values()], axis=0)
        return Agreement(*(int(count) for count in largest[:3]), *(float(diff) for diff in largest[3:]))

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers for the report."""
        worst = self.worst
        return asdict(worst) | {
            "label_agreement": 1 - worst.num_disagreements / max(worst.num_images, 1),
            "by_batch_size": {str(size): asdict(part) for size, part in self.by_batch_size.items()},
        }

    def refuse_disagreement(self) -> None:
        """Pass only a file that gives the checkpoint's labels and probabilities.

        Raises:
            ParityError: saying how far off it is, and for which batch size.
        """
        for size, part in self.by_batch_size.items():
            # written so that NaN fails
            if part.num_disagreements or not part.max_abs_diff_probabilities <= MAX_PROBABILITY_DIFF:
                raise ParityError(
                    f"the ONNX file does not say what the checkpoint says, so it was not kept: with batches of {size} "
                    f"{part.num_disagreements} of {part.num_images:,} labels differ, logits by up to "
                    f"{part.max_abs_diff_logits:.2g}, probabilities by up to {part.max_abs_diff_probabilities:.2g}; "
                    "try another opset, e.g. opset=18."
                )


def compare(classifier: Classifier, exported: OnnxClassifier, samples: Iterable[np.ndarray]) -> Parity:
    """Run every image through the classifier once, and through the file once for each of BATCH_SIZES.

    Args:
        classifier: in eval mode, float32, on the CPU.
        exported: the file made from it.
        samples: batches of any size, uint8 (N, 3, S, S), prepared as the preprocess record says.
    """
    temperature = classifier.calibration_temperature

    def reference(images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            logits = classifier(torch.from_numpy(images))
            return logits.numpy(), (logits / temperature).softmax(dim=1).numpy()

    parity = Parity()
    for images in regroup(samples, _CHUNK):
        expected = in_batches(reference, images, BATCH_SIZES[-1])
        for size, agreement in parity.by_batch_size.items():
            agreement.add(expected, in_batches(exported.predict, images, size))
    return parity


def regroup(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut a stream of batches (N, ...) into arrays of `size` rows; the last one may be shorter."""
    kept: list[np.ndarray] = []
    for batch in batches:
        kept.append(batch)
        while sum(map(len, kept)) >= size:
            rows = np.concatenate(kept)
            yield rows[:size]
            kept = [rows[size:]]
    if any(map(len, kept)):
        yield np.concatenate(kept)


def in_batches(function: Callable[[np.ndarray], Outputs], images: np.ndarray, size: int) -> Outputs:
    """Call `function` with exactly `size` images at a time, and put together what it gives for each image.

    The last batch is filled up with the first images, so that a size is tried even on a handful of them.
    """
    count = len(images)
    places = np.arange(-(-count // size) * size) % count
    parts = [function(images[places[start : start + size]]) for start in range(0, len(places), size)]
    logits, probabilities = (np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True))
    return logits, probabilities
