"""What an evaluation leaves behind: names of images, and the pixels of mistakes where there are no files."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from imago.analysis.evaluation import load_evaluation, saved_images
from imago.data.dataset import LabeledArray, LabeledFiles, Splits
from imago.errors import DataError
from imago.inference.results import images_in_memory, write_results
from imago.statistics.metrics import Result, softmax, worst_mistakes

NAMES = ("ant", "bee")


def in_memory(split: str, count: int, level: int) -> LabeledArray:
    images = np.full((count, 3, 4, 4), level, np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    return LabeledArray(images, np.arange(count) % 2, tuple(f"{split}/{place}" for place in range(count)))


@pytest.fixture
def data() -> SimpleNamespace:
    parts = (in_memory("train", 6, 0), in_memory("val", 4, 100), in_memory("test", 5, 200))
    return SimpleNamespace(splits=Splits(NAMES, *parts))


def answers(labels: np.ndarray, seed: int = 0) -> Result:
    logits = np.random.default_rng(seed).normal(size=(len(labels), 2)).astype(np.float32)
    return Result(NAMES, labels, logits, softmax(logits).max(axis=1))


def test_images_in_memory_have_names_and_their_mistakes_are_kept(data: SimpleNamespace, tmp_path: Path):
    result = answers(data.splits.test.labels)
    folder = tmp_path / "eval" / "test"
    written = write_results(folder, result, {"split": "test"}, data)
    assert {file.name for file in folder.iterdir()} == set(written)
    assert "reliability.png" in written
    found = load_evaluation(tmp_path)
    assert found.images == tuple(f"test/{place}" for place in range(5))
    kept = saved_images(found)
    worst = worst_mistakes(result.is_right, result.confidence, 25)
    assert list(kept) == found.worst_mistakes(25).tolist() == worst.tolist()
    assert len(kept) > 0
    assert {row: image.max() for row, image in kept.items()} == {row: 200 + row for row in kept}
    assert json.loads((folder / "metrics.json").read_text()) == {"split": "test"}


def test_files_are_named_by_their_path_and_keep_no_pixels(tmp_path: Path):
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    numbers = np.zeros(2, np.int64)
    files = LabeledFiles(tmp_path, ("0.png", "1.png"), numbers, numbers, np.array([0, 1]))
    data = SimpleNamespace(splits=Splits(NAMES, files, files, files))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mistakes.npz").write_bytes(b"of an older evaluation")
    assert "mistakes.npz" not in write_results(tmp_path / "out", answers(files.labels), {"split": "val"}, data)
    assert not (tmp_path / "out" / "mistakes.npz").exists()
    with (tmp_path / "out" / "predictions.csv").open() as lines:
        assert [row["image"] for row in csv.DictReader(lines)] == [str(tmp_path / f"{n}.png") for n in range(2)]


def test_rows_of_all_splits_together_lead_to_the_right_image(data: SimpleNamespace):
    found = images_in_memory(data, "all", [0, 5, 6, 9, 10, 14])
    assert {row: int(image[0, 0, 0]) for row, image in found.items()} == {
        **{0: 0, 5: 5, 6: 100, 9: 103},
        **{10: 200, 14: 204},
    }


def test_a_folder_that_cannot_be_written_is_one_line(data: SimpleNamespace, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: .+; name another folder, output=DIR"):
        write_results(tmp_path / "file" / "x", answers(data.splits.test.labels), {"split": "test"}, data)
