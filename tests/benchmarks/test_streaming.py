"""Accuracies through chunks are compared with the array's by seed; intervals against values computed by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_differences_are_paired_by_seed_and_intervals_are_those_of_all_images(script):
    streaming = script("streaming")
    found = streaming.compared({"array": [0.60, 0.62, 0.61], "chunks": [0.61, 0.62, 0.63]}, "chunks")
    assert found["mean"] == pytest.approx(0.62)
    half = 1.96 * (0.62 * 0.38 / 30_000) ** 0.5  # of a proportion of 30,000 images
    assert found["interval_95"] == pytest.approx([0.62 - half, 0.62 + half], abs=1e-4)
    assert found["minus_array"] == pytest.approx(0.01)
    half = 4.303 * 0.01 / 3**0.5  # Student's t of 2 degrees of freedom; the standard deviation is 0.01
    assert found["minus_array_interval_95"] == pytest.approx([0.01 - half, 0.01 + half], rel=1e-3)


def test_the_plot_is_drawn_from_stored_results(script, tmp_path: Path):
    streaming = script("streaming")
    accuracies = {"array": [0.6, 0.61], "sorted, window 1": [0.2, 0.21]}
    rows = [
        {"num_images": size, "first_batch_s": 1.0, "cpu_ms_per_image": 0.2, "main_mib": 500.0, "worker_mib": 50.0}
        for size in (1_000, 10_000)
    ]
    cases = {name: streaming.compared(accuracies, name) for name in accuracies}
    streaming.draw({"quality": {"cases": cases}, "growth": rows}, tmp_path / "plot.png")
    image = np.asarray(Image.open(tmp_path / "plot.png"))
    assert image.shape[:2] == (380, 1300)
    is_colored = np.ptp(image[..., :3].astype(int), axis=2) > 50  # points and curves; text, axes and grid are gray
    assert is_colored[:, :650].sum() > 100
    assert is_colored[:, 650:].sum() > 100
