"""The files of an evaluation: names of images, and the pixels of mistakes if the images are no files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.analysis.evaluation import load_evaluation, saved_images
from imago.data.dataset import LabeledArray, LabeledFiles
from imago.errors import DataError
from imago.inference.results import compare_with_final_test, summary_lines, write_results
from imago.statistics.metrics import LabeledOutputs, softmax

NAMES = ("ant", "bee")


@pytest.fixture
def samples() -> LabeledArray:
    """Five images in memory, with levels from 200."""
    images = np.full((5, 3, 4, 4), 200, np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
    return LabeledArray(images, np.arange(5) % 2, tuple(f"test/{index}" for index in range(5)))


def random_result(labels: np.ndarray, seed: int = 0) -> LabeledOutputs:
    logits = np.random.default_rng(seed).normal(size=(len(labels), 2)).astype(np.float32)
    return LabeledOutputs(NAMES, labels, logits, softmax(logits).max(axis=1))


def test_images_in_memory_have_names_and_their_mistakes_are_saved(samples: LabeledArray, tmp_path: Path):
    result = random_result(samples.labels)
    folder = tmp_path / "eval" / "test"
    written = write_results(folder, result, {"split": "test"}, samples)
    assert {file.name for file in folder.iterdir()} == set(written)
    assert "reliability.png" in written
    found = load_evaluation(tmp_path)
    assert found.image_names == tuple(f"test/{index}" for index in range(5))
    kept = saved_images(found)
    assert list(kept) == found.worst_mistakes(25).tolist() == result.worst_mistakes(25).tolist()
    assert len(kept) > 0
    assert {row: image.max() for row, image in kept.items()} == {row: 200 + row for row in kept}
    assert json.loads((folder / "metrics.json").read_text()) == {"split": "test"}


def test_files_are_named_by_their_path_and_no_pixels_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("imago.inference.results._write_figures", lambda *_: [])
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    numbers = np.zeros(2, np.int64)
    files = LabeledFiles(tmp_path, ("0.png", "1.png"), numbers, numbers, np.array([0, 1]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mistakes.npz").write_bytes(b"of an older evaluation")
    assert "mistakes.npz" not in write_results(tmp_path / "out", random_result(files.labels), {"split": "val"}, files)
    assert not (tmp_path / "out" / "mistakes.npz").exists()
    with (tmp_path / "out" / "predictions.csv").open() as lines:
        assert [row["image"] for row in csv.DictReader(lines)] == [str(tmp_path / f"{n}.png") for n in range(2)]


def test_a_folder_that_cannot_be_written_is_one_line(samples: LabeledArray, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: .+; choose another directory with output=DIR"):
        write_results(tmp_path / "file" / "x", random_result(samples.labels), {"split": "test"}, samples)


@pytest.mark.parametrize("summary", [{"test": {"num_images": 5}}, {"test": 5}, {"val": [1], "test": {"acc": 0.5}}])
def test_a_damaged_summary_is_a_note_beside_the_new_results(tmp_path: Path, summary: dict):
    metadata = {"split": "test", "acc": 0.5, "images_sha256": "i", "data_fingerprint": "f", "num_images": 5}
    metadata |= {"tta": "none", "model": str(tmp_path / "checkpoints" / "best.ckpt")}
    (tmp_path / "provenance.json").write_text('{"data": "f", "test": "i"}')
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    remark, (note,) = compare_with_final_test(tmp_path, metadata, True)
    assert remark == ""
    assert note.startswith(f"{tmp_path / 'summary.json'} is damaged")
    for test, expected in (({"acc": 0.5, "num_images": 5}, " (the run's final test: the same)"), (None, "")):
        (tmp_path / "summary.json").write_text(json.dumps({"test": test}))
        assert compare_with_final_test(tmp_path, metadata, True)[0] == expected


def test_class_names_cannot_control_the_terminal():
    logits = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    result = LabeledOutputs(("a\x1b[2J", "b\nc"), np.array([0, 1, 1]), logits, np.array([0.7, 0.7, 0.7]))
    info = {"model": "best.ckpt", "data": "ImageFolder", "split": "val", "tta": "none"}
    lines = summary_lines(result, info | result.metrics())
    assert all(line.isprintable() for line in lines)
    assert r"confused  b\nc as a\x1b[2J 1 x" in lines
    assert lines[-1].startswith(r"b\nc ")
