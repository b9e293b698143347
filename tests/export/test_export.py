"""`python src/export.py` writes a file that equals the checkpoint, and keeps no other."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from short_runs import summary

from imago import load_model
from imago.data.dataset import ArrayDataset, LabeledArray
from imago.errors import ConfigError, DataError
from imago.export.export import _batches, _check_same_outputs
from imago.export.export import export as export_command
from imago.export.metadata import metrics_of
from imago.onnx_classifier import OnnxClassifier
from imago.paths import short_path
from imago.runs.run_directory import lock_directory

# Runs src/export.py as a user would, after a line of Python that changes something.
AFTER = "import sys, runpy; sys.path.insert(0, 'src'); sys.argv = {argv!r}\n{change}\n"
AFTER += "runpy.run_path('src/export.py', run_name='__main__')"
WRONG_LABELS = """
from imago.onnx_classifier import OnnxClassifier
right = OnnxClassifier.predict
OnnxClassifier.predict = lambda self, images: tuple(-array for array in right(self, images))"""
FILES = {"model.onnx", "export_report.json", "export.log", ".lock"}


def report(run: Path) -> dict:
    return json.loads((run / "export" / "export_report.json").read_text())


def export(command: Callable, *arguments: str, change: str = "") -> subprocess.CompletedProcess:
    return command("-c", AFTER.format(argv=["src/export.py", *arguments], change=change))


def assert_refused(done: subprocess.CompletedProcess, text: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that a test may change, in a directory whose name must be quoted."""
    return Path(shutil.copytree(finished_run, tmp_path / "my run (1)"))


@pytest.mark.slow
def test_a_second_export_of_a_run_at_the_same_time_is_refused(copied_run: Path, command: Callable):
    (copied_run / "export").mkdir(exist_ok=True)
    with lock_directory(copied_run / "export"):
        done = export(command, f"run={copied_run}")
    assert_refused(done, "export is used by another export; wait for its end.")


@pytest.mark.slow
def test_the_report_covers_all_validation_images_at_every_batch_size(exported_run: Path):
    run = exported_run
    assert {file.name for file in (run / "export").iterdir()} == FILES
    assert [directory.name for directory in (*run.parent.iterdir(), *run.parent.parent.iterdir())] == ["short", "train"]
    found = report(run)
    assert set(found["by_batch_size"]) == {"1", "2", "7", "64"}
    assert {numbers["num_images"] for numbers in found["by_batch_size"].values()} == {1000}
    assert (found["num_images"], found["num_disagreements"], found["label_agreement"]) == (1000, 0, 1.0)
    assert 0 <= found["max_abs_diff_probabilities"] < 1e-5
    content = (run / "export" / "model.onnx").read_bytes()
    assert (found["sha256"], found["num_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (found["opset"], found["checkpoint"], found["run_id"]) == (20, "checkpoints/best.ckpt", "short")


@pytest.mark.slow
def test_metadata_are_those_of_the_run(exported_run: Path):
    run = exported_run
    model, checkpoint, numbers = OnnxClassifier(run / "export" / "model.onnx"), load_model(run), summary(run)
    assert (model.class_names, model.preprocess) == (checkpoint.class_names, checkpoint.preprocess)
    metrics = model.metadata["metrics"]
    assert metrics["val"] == {key: numbers["val"][key] for key in ("acc", "interval_95", "num_images")}
    assert (metrics["test"]["acc"], metrics["test"]["num_images"]) == (numbers["test"]["acc"], 1000)
    assert model.metadata["run_id"] == "short"


@pytest.mark.slow
def test_screen_shows_the_steps_and_what_to_type_next_but_no_output_of_the_exporter(exported_run: Path):
    run, printed = exported_run, exported_run.parents[2].joinpath("export_screen.txt").read_text()
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["checkpoint", "data", "written", "compared"]
    assert lines[3].startswith("compared    1,000 images: every label agrees, 0 ties; differences up to ")
    file = short_path(run / "export" / "model.onnx")
    assert f"  python src/eval.py run={file}" in lines
    assert f"  python src/predict.py run={file} input=IMAGE" in lines
    assert "[torch.onnx]" not in printed
    assert "[torch.onnx]" in (run / "export" / "export.log").read_text()


@pytest.mark.slow
def test_a_file_is_replaced_atomically_and_only_by_one_that_agrees(copied_run: Path, command: Callable):
    directory = copied_run / "export"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"an older file")
    (directory / "export_report.json").write_text("{}")
    few = (f"run={copied_run}", "parity_samples=5")
    assert_refused(export(command, *few), "export/model.onnx exists; overwrite=true replaces it.")
    assert {file.name for file in directory.iterdir()} == FILES - {"export.log", ".lock"}
    refused = export(command, *few, "overwrite=true", change=WRONG_LABELS)
    assert_refused(refused, "of 5 labels differ")
    assert "Traceback" in (directory / "export.log").read_text()
    assert {file.name for file in directory.iterdir()} == FILES
    assert (directory / "model.onnx").read_bytes() == b"an older file"
    assert (directory / "export_report.json").read_text() == "{}"

    (directory / "model.onnx.123.part").write_bytes(b"of an export that was killed")
    with (directory / "model.onnx").open("rb") as reader:
        done = export(command, *few, "overwrite=true", "ckpt=last", "opset=18")
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.read() == b"an older file"  # a new file took the name; the old one was not written over
    assert {file.name for file in directory.iterdir()} == FILES
    found = report(copied_run)
    assert (found["num_images"], found["opset"], found["checkpoint"]) == (5, 18, "checkpoints/last.ckpt")
    assert found["metrics"] == {}  # the run's accuracies are those of the best checkpoint
    assert f"  python src/eval.py 'run={short_path(directory / 'model.onnx')}'" in done.stdout


@pytest.mark.slow
def test_changed_data_is_reported_and_missing_data_names_the_config(copied_run: Path, command: Callable):
    provenance, config = copied_run / "provenance.json", copied_run / "config.yaml"
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"data": "another"}))
    assert "has changed since the run was trained" in export(command, f"run={copied_run}", "parity_samples=5").stdout
    settings = OmegaConf.load(config)
    (copied_run / "empty").mkdir()
    target = "imago.data.file_datamodule.ImageFolderDataModule"
    settings.data |= {"_target_": target, "root": f"{copied_run}/empty", "cache_dir": ""}
    OmegaConf.save(settings, config)
    assert_refused(export(command, f"run={copied_run}", "overwrite=true"), "config.yaml: ")  # which names the data


def test_metrics_are_those_of_the_summary_and_of_the_best_checkpoint_only(tmp_path: Path):
    (tmp_path / "summary.json").write_text(
        '{"val": {"acc": 0.5, "loss": 1, "num_images": 9}, "epochs": 2, "test": null}'
    )
    assert metrics_of(tmp_path, tmp_path / "checkpoints" / "best.ckpt") == {"val": {"acc": 0.5, "num_images": 9}}
    assert metrics_of(tmp_path, tmp_path / "checkpoints" / "last.ckpt") == {}
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    assert metrics_of(tmp_path, tmp_path / "checkpoints" / "best.ckpt") == {}


def test_an_accuracy_with_several_views_is_not_published_as_that_of_a_file_with_one(tmp_path: Path):
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    (tmp_path / "eval" / "test").mkdir(parents=True)
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    (tmp_path / "summary.json").write_text('{"test": {"acc": 0.9, "num_images": 8, "tta": "flip"}}')
    assert metrics_of(tmp_path, checkpoint) == {}
    digest = hashlib.sha256(b"weights").hexdigest()
    found = {"acc": 0.75, "num_images": 8, "tta": "none", "model_sha256": digest}
    for change, expected in (({}, 0.75), ({"tta": "flip"}, None), ({"model_sha256": "another"}, None)):
        (tmp_path / "eval" / "test" / "metrics.json").write_text(json.dumps(found | change))
        assert metrics_of(tmp_path, checkpoint).get("test", {}).get("acc") == expected


@pytest.mark.parametrize(("limit", "expected"), [(None, range(10)), (99, range(10)), (3, [0, 3, 6]), (1, [0])])
def test_a_limit_takes_images_evenly_spread_over_the_split(limit: int | None, expected: Sequence[int]):
    labels = np.arange(10)
    images = np.broadcast_to(labels[:, None, None, None].astype(np.uint8), (10, 3, 2, 2))
    dataset = ArrayDataset(LabeledArray(images, labels, tuple(map(str, labels))))
    data = SimpleNamespace(dataset=lambda split: {"val": dataset}[split])
    assert [int(image[0, 0, 0]) for images, _ in _batches(data, "val", limit, "") for image in images] == list(expected)


@pytest.fixture(scope="module")
def settings(compose: Callable) -> DictConfig:
    return compose("run=x", config_name="export")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"run": "no such/run"}, "run=no such/run does not exist; type a run directory such as logs/latest"),
        ({"parity_samples": 0}, "parity_samples=0 must be 1 or more"),
        ({"opset": -1}, "opset=-1 must be 1 or more"),
        ({"ckpt": "middle"}, "has no checkpoints/middle.ckpt"),
        ({"run": "{run}/model.onnx"}, "is an ONNX file already; type the run directory it came from."),
        ({"run": "{run}/loose.ckpt"}, "is not in a run directory"),
        ({"ckpt": "{run}/loose.ckpt"}, "would export another network"),
    ],
)
def test_an_invalid_setting_is_one_line_and_writes_nothing(
    settings: DictConfig, changes: dict, text: str, tmp_path: Path
):
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/best.ckpt", "model.onnx", "loose.ckpt"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    typed = {"run": "{run}"} | changes
    typed = {key: value.format(run=tmp_path) if isinstance(value, str) else value for key, value in typed.items()}
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        export_command(OmegaConf.merge(settings, typed))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_one_line(settings: DictConfig, copied_run: Path):
    (copied_run / "export").touch()
    with pytest.raises(
        DataError, match=r"export cannot be written: File exists; .* with run=COPY, a copy of the run\.$"
    ) as caught:
        export_command(OmegaConf.merge(settings, {"run": str(copied_run)}))
    assert "\n" not in str(caught.value)


def test_help_loads_no_torch_and_explains_every_setting(settings: DictConfig, without_torch: Callable):
    names = set(settings) - {"paths"}
    assert names == {
        *("run", "ckpt", "format", "precision", "opset", "parity_samples", "max_accuracy_drop", "calibration_samples"),
        *("keep_float", "benchmark", "overwrite", "trust"),
    }
    done = without_torch("src/export.py", "--help")
    assert done.stdout.startswith("Write a trained network in another format")
    assert "train.py" not in done.stdout
    assert names <= {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}


@pytest.mark.slow
def test_a_file_of_another_network_is_not_compared_with_the_checkpoint(exported_run: Path):
    file, model = exported_run / "export" / "model.onnx", load_model(exported_run)
    network = SimpleNamespace(classifier=model, checkpoint=exported_run / "checkpoints" / "best.ckpt")
    _check_same_outputs(file, network)
    model.class_names = model.class_names[::-1]
    with pytest.raises(
        DataError, match=r"model\.onnx has other classes or another preprocess record than .*best\.ckpt; "
    ):
        _check_same_outputs(file, network)
