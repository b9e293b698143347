"""The table of formats: what is measured, what is compared, and what cannot be measured."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imago.errors import UserError
from imago.export import benchmark
from imago.export.benchmark import Row, benchmark_tables, measure_rows, write_benchmark, write_rows
from imago.export.measure import CHECKPOINT
from imago.onnx_classifier import OnnxClassifier
from imago.statistics.paired import compare_paired


@pytest.fixture(scope="module")
def measured(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The checkpoint of a run, its ONNX file and a file that cannot be read, measured once on 100 images."""
    directory = tmp_path_factory.mktemp("benchmark")
    file = exported_run / "export" / "model.onnx"
    (directory / "broken.onnx").write_bytes(b"x")
    rows = [
        Row("checkpoint", exported_run / "checkpoints" / "best.ckpt", CHECKPOINT, "torch", num_bytes=8_000_000),
        Row("onnx fp32", file, "onnx", "onnxruntime", num_bytes=file.stat().st_size),
        Row("broken", directory / "broken.onnx", "onnx", "onnxruntime"),
        Row("absent", Path(), "paddle", "paddlepaddle", reason="not installed: paddlepaddle; make export-env"),
    ]
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 32, 32), np.uint8)
    np.save(directory / "images.npy", images)
    labels = OnnxClassifier(file).predict(images)[0].argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % 10  # ten are wrong
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "NUM_ROUNDS", 1)
        measure_rows(rows, directory / "images.npy", labels, [1])
    return rows


@pytest.mark.slow
def test_accuracy_is_that_of_the_labels_and_times_are_positive(measured: list[Row]):
    checkpoint, exported, broken, absent = measured
    assert (checkpoint.num_correct, exported.num_correct) == (90, 90)
    assert exported.against_checkpoint == compare_paired(np.arange(100) >= 10, np.arange(100) >= 10)
    for row in (checkpoint, exported):
        numbers = row.by_threads[1]
        assert 0 < numbers["p50_ms"] <= numbers["p95_ms"]
        assert numbers["images_per_s"] > 0
        assert numbers["install_mb"] > 10
    # onnxruntime needs no torch, which alone takes over 100 MB
    assert exported.by_threads[1]["peak_memory_mb"] + 100 < checkpoint.by_threads[1]["peak_memory_mb"]
    assert "truncated or not an ONNX file" in broken.reason
    assert absent.reason.startswith("not installed")


@pytest.mark.slow
def test_the_tables_have_a_row_for_each_format_also_with_a_reason(measured: list[Row], tmp_path: Path):
    (table,) = benchmark_tables(measured, 100).values()
    assert [cells[0] for cells in table[1:]] == ["checkpoint", "onnx fp32", "broken", "absent"]
    assert table[2][1:4] == ["90.00 %", "82.56 to 94.48", "+0.00 (-3.70 to +3.70)"]
    assert table[4][-1].startswith("not installed: paddlepaddle")
    assert "nan" not in str(table).lower()
    file = write_benchmark(measured, tmp_path, 100, "val", "SimpleCNN")
    assert "| onnx fp32 | 90.00 % |" in file.read_text()
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["reason"] == "" for row in content["rows"]] == [True, True, False, False]
    assert content["environment"]["cpu"]


@pytest.mark.slow
def test_the_table_of_one_file_does_not_replace_that_of_all_formats(measured: list[Row], tmp_path: Path):
    all_formats = write_benchmark(measured, tmp_path, 100, "val", "SimpleCNN").read_text()
    rows = [measured[0], replace(measured[1], name="model_int8.onnx", path=tmp_path / "model_int8.onnx")]
    file = write_benchmark(rows, tmp_path, 100, "val", "SimpleCNN")
    assert file == tmp_path / "benchmark_model_int8.md"
    assert "| model_int8.onnx |" in file.read_text()
    assert (tmp_path / "benchmark.md").read_text() == all_formats
    assert len(list(tmp_path.glob("benchmark_model_int8.*"))) == 3


def test_a_format_that_cannot_be_written_is_a_row_with_the_reason(tmp_path: Path):
    def write(name: str, precision: str, path: Path) -> dict:
        if precision == "int8":
            raise UserError("it would lose 3 points")
        return {"num_bytes": 4}

    rows = {row.name: row for row in write_rows(tmp_path, write)}
    assert rows["onnx int8"].reason == "it would lose 3 points"
    assert (rows["onnx fp32"].reason, rows["onnx fp32"].num_bytes) == ("", 4)
    assert not any(name.startswith(("state_dict", "safetensors")) for name in rows)


def test_a_checkpoint_that_cannot_be_measured_is_an_error(tmp_path: Path):
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 32, 32), np.uint8))
    row = Row("checkpoint", tmp_path / "none.onnx", "onnx", "onnxruntime")
    with pytest.raises(UserError, match="the checkpoint cannot be measured: .*none.onnx cannot be read"):
        measure_rows([row], tmp_path / "images.npy", np.zeros(2, int), [1])


@pytest.mark.soak
def test_an_exported_file_is_compared_with_its_checkpoint(exported_run: Path, tmp_path: Path, command: Callable):
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    (run / "export" / "benchmark.killed.part").mkdir()
    done = command("src/export.py", f"run={run}/export/model.onnx", "benchmark=true", "parity_samples=100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model.onnx" in (run / "export" / "benchmark_model.md").read_text()
    assert not list((run / "export").glob("*.part"))
