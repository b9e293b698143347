"""Versions share requests exactly by their weights; a reload replaces what works and keeps what does not."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from onnx_files import write_channel_means

from imago.errors import DataError
from imago.onnx_classifier import OnnxClassifier
from imago.serve.errors import RequestError
from imago.serve.metrics import Metrics
from imago.serve.models import Models
from imago.serve.settings import read_settings


class Folder:
    """A directory with a config and files of models."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("a", "1")
        self.write("b", "2")
        self.configure("models: {m: {v1: a.onnx, v2: b.onnx}, n: {v1: a.onnx}}")

    def write(self, name: str, run_id: str) -> None:
        write_channel_means(self.path / f"{name}.onnx", run_id=run_id)

    def configure(self, content: str) -> None:
        (self.path / "models.yaml").write_text(content)

    def load(self) -> Models:
        return Models(lambda: read_settings([f"config={self.path / 'models.yaml'}", "threads=1"]), Metrics())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def run_ids(models: Models) -> dict[str, str]:
    """Return the runs of the versions of the model m."""
    versions = models.describe()[0]["versions"]
    return {version["version"]: version["run_id"] for version in versions if version["ready"]}


def test_requests_are_shared_exactly_by_the_weights(folder: Folder):
    folder.configure("models: {m: {v1: a.onnx, v2: b.onnx}}\nweights: {m: {v1: 3, v2: 1}}")
    models = folder.load()
    for _ in range(5):
        assert Counter(models.choose().name for _ in range(8)) == {"v1": 6, "v2": 2}
    assert models.choose("m", "v2").name == "v2"


def test_without_weights_the_first_version_gets_all(folder: Folder):
    models = folder.load()
    assert {models.choose("m").name for _ in range(9)} == {"v1"}
    assert (models.choose("n").model, models.choose("m", "v2").name) == ("n", "v2")


@pytest.mark.parametrize(("model", "version"), [("x", None), ("m", "v3"), ("", None)])
def test_an_unknown_model_or_version_is_not_found(folder: Folder, model: str, version: str | None):
    with pytest.raises(RequestError) as caught:
        folder.load().choose(model, version)
    assert caught.value.code == "not_found"


def test_the_start_fails_for_a_file_that_cannot_be_loaded(folder: Folder):
    (folder.path / "b.onnx").write_bytes(b"x")
    with pytest.raises(DataError, match="b.onnx is truncated or not an ONNX file"):
        folder.load()


def test_a_reload_loads_what_has_changed_only(folder: Folder):
    models = folder.load()
    unchanged, changed = models.choose("m", "v1"), models.choose("m", "v2")
    folder.write("b", "3")
    asyncio.run(models.reload())
    assert models.choose("m", "v1") is unchanged
    assert models.choose("m", "v2") is not changed
    assert run_ids(models) == {"v1": "1", "v2": "3"}


def test_a_version_that_cannot_be_loaded_keeps_the_old_network_and_says_why(folder: Folder):
    models = folder.load()
    (folder.path / "b.onnx").write_bytes(b"x")
    asyncio.run(models.reload())
    assert run_ids(models) == {"v1": "1", "v2": "2"}
    readiness = models.readiness()
    assert readiness["ready"]
    assert "is truncated or not an ONNX file" in readiness["models"]["m"]["v2"]["reason"]
    folder.write("b", "4")
    asyncio.run(models.reload())
    assert models.readiness()["models"]["m"]["v2"] == {"ready": True, "reason": None}
    assert run_ids(models)["v2"] == "4"


def test_a_new_version_that_cannot_be_loaded_is_not_ready_and_the_others_are(folder: Folder):
    models = folder.load()
    folder.configure("models: {m: {v1: a.onnx, v3: c.onnx}, k: {v1: c.onnx}}")
    asyncio.run(models.reload())
    readiness = models.readiness()
    assert not readiness["ready"]  # the model k has no version
    assert "c.onnx cannot be read" in readiness["models"]["k"]["v1"]["reason"]
    public = models.readiness(has_reasons=False)
    assert "c.onnx" not in str(public)
    assert [version["ready"] for version in public["models"]["m"].values()] == [True, False]
    assert models.choose("m").name == "v1"
    for model, version in (("m", "v3"), ("k", None)):
        with pytest.raises(RequestError) as caught:
            models.choose(model, version)
        assert caught.value.code == "not_ready"
    assert [entry["name"] for entry in models.describe()] == ["m", "k"]


def test_a_config_that_cannot_be_read_changes_nothing(folder: Folder):
    models = folder.load()
    folder.configure("models: 1")
    asyncio.run(models.reload())
    assert "expected models: {NAME: {VERSION: PATH}}" in models.readiness()["reason"]
    assert run_ids(models) == {"v1": "1", "v2": "2"}
    assert models.readiness()["ready"]


def test_a_file_that_is_replaced_while_it_is_loaded_is_loaded_again(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    models = folder.load()
    folder.write("b", "3")

    class ReplacedMeanwhile(OnnxClassifier):
        def __init__(self, *arguments, **settings) -> None:
            super().__init__(*arguments, **settings)
            folder.write("b", "4")

    with monkeypatch.context() as patch:
        patch.setattr("imago.serve.models.OnnxClassifier", ReplacedMeanwhile)
        asyncio.run(models.reload())
    asyncio.run(models.reload())
    assert run_ids(models)["v2"] == "4"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_keeps_the_old_network(folder: Folder):
    models = folder.load()
    (folder.path / "b.onnx").chmod(0)
    asyncio.run(models.reload())
    assert "b.onnx cannot be read: Permission denied" in models.readiness()["models"]["m"]["v2"]["reason"]
    assert run_ids(models) == {"v1": "1", "v2": "2"}


def test_settings_that_a_reload_does_not_change_are_named(folder: Folder, caplog: pytest.LogCaptureFixture):
    models = folder.load()
    folder.configure("models: {m: {v1: a.onnx}}\nthreshold: 0.5\nmax_files: 2\nport: 1\nhost: 127.0.0.1")
    asyncio.run(models.reload())
    assert "the change of port, max_files needs a restart" in caplog.text
    assert (models.settings.threshold, models.settings.max_files, models.settings.port) == (0.5, 32, 8000)


def test_a_replaced_version_answers_the_requests_that_use_it(folder: Folder):
    models = folder.load()

    async def run() -> None:
        old = models.choose("m", "v1")
        size = old.classifier.preprocess.size
        import numpy as np

        with old.in_use():
            folder.write("a", "5")
            await models.reload()
            assert models.choose("m", "v1") is not old
            await asyncio.sleep(0.2)
            await old.batcher.predict(np.zeros((3, size, size), np.uint8))

    asyncio.run(run())
