"""A trained network, the validation images of its run, and a function that exports it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imago.data import shapes
from imago.export.artefact import write_artefact
from imago.export.formats import FORMATS, Options
from imago.export.parity import compare_outputs
from imago.inference.load import load_calibrated
from imago.model.classifier import Classifier


@pytest.fixture(scope="session")
def trained(finished_run: Path) -> Classifier:
    """SimpleCNN after a short training on the drawn shapes; tests only read it."""
    return load_calibrated(finished_run / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="session")
def val_images() -> np.ndarray:
    """100 validation images of that run, which no batch size above 1 divides but 2."""
    return shapes.render_split("val", 100)[0]


@pytest.fixture
def export(trained: Classifier, val_images: np.ndarray, tmp_path: Path) -> Callable[..., tuple[Path, dict]]:
    """Write an artefact to `tmp_path`, by default compared with the trained network; return its path and report."""

    def run(format: str, precision: str = "fp32", classifier: Classifier = trained, verify=None) -> tuple[Path, dict]:
        path = tmp_path / FORMATS[format].file_of(precision)
        verify = verify or (lambda predict, _: compare_outputs(trained, predict, [val_images]))
        settings = {"run_id": "short", "metrics": {}}
        return path, write_artefact(classifier, path, settings, Options(format, precision), verify)

    return run
