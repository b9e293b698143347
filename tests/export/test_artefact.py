"""Every format gives the outputs of the checkpoint; a file that does not is removed, and an older one stays."""

import copy
import hashlib
import json
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from imago.errors import DataError, StorageError, UserError
from imago.export import artefact, onnx
from imago.export.formats import FORMATS, Options
from imago.files import report_unwritable
from imago.model.classifier import Classifier

HERE = [name for name, format in FORMATS.items() if not format.environment]
pytestmark = pytest.mark.slow


@pytest.fixture
def negated(trained: Classifier) -> Classifier:
    """The network with other weights: the least likely class becomes the label."""
    other = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in list(other.net.parameters())[-2:]:
            parameter.neg_()
    return other


@pytest.mark.parametrize("format", HERE)
def test_a_file_gives_the_outputs_of_the_checkpoint_at_every_batch_size_and_describes_itself(
    format: str, export: Callable, trained: Classifier
):
    path, report = export(format)
    assert {size: numbers["num_images"] for size, numbers in report["by_batch_size"].items()} == dict.fromkeys(
        ("1", "2", "7", "64"), 100
    )
    assert (report["num_disagreements"], report["label_agreement"]) == (0, 1.0)
    assert report["max_abs_diff_probabilities"] < 1e-5
    assert (report["format"], report["precision"], report["run_id"]) == (format, "fp32", "short")
    if not path.is_dir():
        return  # the metadata of an ONNX file are tested with it
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["class_names"] == list(trained.class_names)
    assert metadata["preprocess"] == trained.preprocess.to_dict()
    assert metadata["calibration_temperature"] == trained.calibration_temperature != 1
    assert metadata["prediction_sets"] == json.loads(json.dumps(asdict(trained.prediction_sets)))
    assert metadata["unknown_detector"] == json.loads(json.dumps(trained.unknown_detector.to_dict()))
    assert (metadata["run_id"], metadata["format"], metadata["precision"]) == ("short", format, "fp32")
    others = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "metadata.json"}
    assert metadata["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}
    assert report["num_bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert set(FORMATS[format].packages) <= set(metadata["versions"])


@pytest.mark.parametrize("format", HERE)
def test_a_file_that_disagrees_is_removed_and_the_one_before_stays(
    format: str, export: Callable, negated: Classifier, tmp_path: Path
):
    path, _ = export(format, classifier=negated, verify=lambda predict, _: {})
    (tmp_path / f"{path.name}.killed.part").mkdir()  # of an export that was killed
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".log"}
    with pytest.raises(UserError, match=r"was not kept: with batches of 1 \d+ of 100 labels differ") as caught:
        export(format, classifier=negated)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in before} == before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "export.log"}
    export(format)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "export.log"}
    assert {file: file.read_bytes() for file in before if file.exists()} != before


def test_a_damaged_file_is_named_by_its_own_name(export: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(classifier: Classifier, path: Path, metadata: dict, options: Options) -> dict:
        path.write_bytes(b"text")
        return {"opset": 20}

    monkeypatch.setattr(onnx, "write", write)
    with pytest.raises(
        DataError, match=r"/model.onnx is truncated or not an ONNX file .* It was not kept\.$"
    ) as caught:
        export("onnx")
    assert ".part" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["export.log"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    export: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(artefact, "free_disk_bytes", lambda directory: 400_000)
    for format in HERE:
        with pytest.raises(StorageError, match=r"400,000 bytes free, and an export of .* takes up to [\d,]+; "):
            export(format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["state_dict", "safetensors", "torch_export", "onnx"])
def test_a_write_that_fails_is_one_line_and_leaves_no_file(export: Callable, tmp_path: Path, format: str):
    """As on a disk that fills up; here a limit of the size of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written: .*\."), report_unwritable(tmp_path):
            export(format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name for file in tmp_path.iterdir()} <= {"export.log"}
