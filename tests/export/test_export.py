"""`python src/export.py` writes a file that equals the checkpoint, and keeps no other."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from short_runs import summary
from warm_python import warm_imago

from imago import load_model
from imago.artifact import OnnxClassifier
from imago.data.shapes import draw_split
from imago.export.export import _metrics, _validation_images

# Runs src/export.py as a user would, after a line of Python that changes something.
AFTER = "import sys, runpy; sys.path.insert(0, 'src'); sys.argv = {argv!r}\n{change}\n"
AFTER += "runpy.run_path('src/export.py', run_name='__main__')"
WRONG_LABELS = """
from imago.artifact import OnnxClassifier
right = OnnxClassifier.predict
OnnxClassifier.predict = lambda self, images: tuple(-part for part in right(self, images))"""
NO_TORCH = "sys.modules['torch'] = None; sys.modules['lightning'] = None"
FILES = {"model.onnx", "export_report.json", "export.log"}


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
    """A run that a test may change, in a folder whose name must be quoted."""
    return Path(shutil.copytree(finished_run, tmp_path / "my run (1)"))


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A copy of the run after `export.py`, and what the command printed."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("logs") / "train" / "short"))
    log_dir = run.parent.parent
    done = warm_imago().run("src/export.py", f"run={run}", f"paths.log_dir={log_dir}")
    assert done.returncode == 0, done.stdout + done.stderr
    return run, done


@pytest.mark.slow
def test_file_report_and_log_are_written_to_the_run_and_nothing_elsewhere(exported):
    run, _ = exported
    assert {file.name for file in (run / "export").iterdir()} == FILES
    assert [folder.name for folder in run.parent.iterdir()] == ["short"]
    assert [folder.name for folder in run.parent.parent.iterdir()] == ["train"]


@pytest.mark.slow
def test_report_covers_all_validation_images_at_every_batch_size(exported):
    run, _ = exported
    found = report(run)
    assert set(found["by_batch_size"]) == {"1", "2", "7", "64"}
    assert {part["num_images"] for part in found["by_batch_size"].values()} == {1000}
    assert (found["num_images"], found["num_disagreements"], found["label_agreement"]) == (1000, 0, 1.0)
    assert 0 <= found["max_abs_diff_probabilities"] < 1e-5
    content = (run / "export" / "model.onnx").read_bytes()
    assert (found["sha256"], found["num_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (found["opset"], found["checkpoint"], found["run_id"]) == (20, "checkpoints/best.ckpt", "short")


@pytest.mark.slow
def test_metadata_are_those_of_the_run(exported):
    run, _ = exported
    model, checkpoint = OnnxClassifier(run / "export" / "model.onnx"), load_model(run)
    assert model.class_names == checkpoint.class_names
    assert model.preprocess == checkpoint.preprocess
    metrics, numbers = model.metadata["metrics"], summary(run)
    assert metrics["val"] == numbers["val"]
    assert metrics["val"]["num_images"] == 1000
    assert (metrics["test"]["acc"], metrics["test"]["num_images"]) == (numbers["test"]["acc"], 1000)
    assert model.metadata["run_id"] == "short"


@pytest.mark.slow
def test_labels_of_the_test_images_are_those_of_load_model(exported):
    run, _ = exported
    images, _ = draw_split("test")
    with torch.inference_mode():
        expected = load_model(run)(torch.from_numpy(images)).numpy()
    logits = OnnxClassifier(run / "export" / "model.onnx").predict(images)[0]
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_screen_shows_the_steps_and_what_to_type_next_but_no_output_of_the_exporter(exported):
    run, done = exported
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["checkpoint", "data", "written", "compared"]
    assert lines[3].startswith("compared    1,000 validation images: every label agrees, 0 ties; differences up to ")
    assert f"  python src/eval.py run={run}/export/model.onnx" in lines
    assert f"  python src/predict.py run={run}/export/model.onnx input=IMAGE" in lines
    assert done.stderr == ""
    assert "[torch.onnx]" not in done.stdout
    assert "[torch.onnx]" in (run / "export" / "export.log").read_text()


@pytest.mark.slow
def test_a_file_that_disagrees_is_removed_and_ends_with_one_line(copied_run: Path, command: Callable):
    done = export(command, f"run={copied_run}", "limit=5", change=WRONG_LABELS)
    assert_refused(done, "of 5 labels differ")
    assert [file.name for file in (copied_run / "export").iterdir()] == ["export.log"]
    assert "Traceback" in (copied_run / "export" / "export.log").read_text()


@pytest.mark.slow
def test_a_good_file_is_replaced_atomically_and_only_by_a_good_one(copied_run: Path, command: Callable):
    folder = copied_run / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"an older file")
    (folder / "export_report.json").write_text("{}")
    assert_refused(export(command, f"run={copied_run}", "limit=5", change=WRONG_LABELS), "labels differ")
    assert (folder / "model.onnx").read_bytes() == b"an older file"
    assert (folder / "export_report.json").read_text() == "{}"

    (folder / "model.onnx.123.part").write_bytes(b"of an export that was killed")
    with (folder / "model.onnx").open("rb") as reader:
        done = export(command, f"run={copied_run}", "limit=5", "ckpt=last", "opset=18")
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.read() == b"an older file"  # a new file took the name; the old one was not written over
    assert {file.name for file in folder.iterdir()} == FILES
    found = report(copied_run)
    assert (found["num_images"], found["opset"], found["checkpoint"]) == (5, 18, "checkpoints/last.ckpt")
    assert found["metrics"] == {}  # the run's accuracies are those of the best checkpoint
    assert f"  python src/eval.py 'run={folder}/model.onnx'" in done.stdout


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused(copied_run: Path, command: Callable):
    checkpoint = copied_run / "checkpoints" / "best.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert_refused(command("src/export.py", f"run={copied_run}"), "best.ckpt is damaged")
    assert not (copied_run / "export" / "model.onnx").exists()


@pytest.mark.slow
def test_changed_data_is_reported_and_missing_data_names_the_config(copied_run: Path, command: Callable):
    provenance, config = copied_run / "provenance.json", copied_run / "config.yaml"
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"data": "another"}))
    assert "has changed since the run was trained" in export(command, f"run={copied_run}", "limit=5").stdout
    settings = OmegaConf.load(config)
    (copied_run / "empty").mkdir()
    target = "imago.data.file_datamodule.ImageFolderDataModule"
    settings.data |= {"_target_": target, "root": f"{copied_run}/empty", "cache_dir": ""}
    OmegaConf.save(settings, config)
    assert_refused(export(command, f"run={copied_run}"), "config.yaml: ")  # which names the data


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("data: [", "config.yaml cannot be read"),
        ("seed: 0", "config.yaml names no data set"),
        ("data: {_target_: os.getcwd}\nextra_targets: [os.getcwd]", "data._target_=os.getcwd is not allowed"),
    ],
)
def test_a_config_without_data_or_with_forbidden_code_is_refused_without_loading_torch(
    config: str, text: str, tmp_path: Path, command: Callable
):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "config.yaml").write_text(config)
    assert_refused(export(command, f"run={tmp_path}", change=NO_TORCH), text)


def test_metrics_are_those_of_the_summary_and_of_the_best_checkpoint_only(tmp_path: Path):
    (tmp_path / "summary.json").write_text(
        '{"val": {"acc": 0.5, "loss": 1, "num_images": 9}, "epochs": 2, "test": null}'
    )
    assert _metrics(tmp_path, tmp_path / "checkpoints" / "best.ckpt") == {"val": {"acc": 0.5, "num_images": 9}}
    assert _metrics(tmp_path, tmp_path / "checkpoints" / "last.ckpt") == {}


@pytest.mark.parametrize(("limit", "expected"), [(None, range(10)), (99, range(10)), (3, [0, 3, 6]), (1, [0])])
def test_a_limit_takes_images_evenly_spread_over_the_split(limit: int | None, expected: Sequence[int]):
    batches = [(torch.arange(start, start + 5), None) for start in (0, 5)]
    data = SimpleNamespace(splits=SimpleNamespace(val=range(10)), val_dataloader=lambda: batches)
    assert [int(image) for batch in _validation_images(data, limit) for image in batch] == list(expected)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "run: has no value yet; type it as run=VALUE."),
        (["run=no such/run"], "run=no such/run does not exist; type a run directory such as logs/latest"),
        (["run={run}", "limit=0"], "limit=0 must be 1 or more"),
        (["run={run}", "limit=1.5"], "limit=1.5: expected a whole number or null"),
        (["run={run}", "opset=new"], "opset=new: expected a whole number or null"),
        (["run={run}", "opset=-1"], "opset=-1 must be 1 or more"),
        (["run={run}", "ckpt=middle"], "has no checkpoints/middle.ckpt"),
        (["run={run}/model.onnx"], "is an ONNX file already; type the run directory it came from."),
        (["run={run}/loose.ckpt"], "is not in a run directory"),
        (["run={run}", "limt=3"], "limt=3: there is no setting 'limt'; did you mean limit?"),
    ],
)
def test_a_mistake_is_one_line_without_loading_torch(
    arguments: list[str], text: str, tmp_path: Path, command: Callable
):
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/best.ckpt", "model.onnx", "loose.ckpt"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    done = export(command, *(argument.format(run=tmp_path) for argument in arguments), change=NO_TORCH)
    assert_refused(done, text)
    assert sorted(tmp_path.rglob("*")) == before


def test_help_loads_no_torch_and_explains_every_setting(compose: Callable, command: Callable):
    settings = set(compose("run=x", config_name="export")) - {"paths"}
    assert settings == {"run", "ckpt", "opset", "limit", "extra_targets"}
    done = export(command, "--help", change=NO_TORCH)
    assert done.stdout.startswith("Export a trained network as ONNX")
    assert "train.py" not in done.stdout
    assert settings <= {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
