"""Formats with an environment of their own give the outputs of the checkpoint; the process there ends in one line."""

import json
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from torchvision.models import swin_t

from imago.errors import UserError
from imago.export import environment
from imago.export.environment import RemoteFormat
from imago.export.formats import FORMATS
from imago.export.metadata import write_metadata
from imago.images import Preprocess
from imago.model.classifier import Classifier
from imago.paths import PROJECT_ROOT

REMOTE = [name for name, format in FORMATS.items() if format.environment]
FILES = {"paddle": {"model.json", "model.pdiparams", "model.pdparams"}, "executorch": {"model.pte"}}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(params=REMOTE)
def format(request: pytest.FixtureRequest) -> str:
    """A format whose environment exists; skips if it does not."""
    if missing := FORMATS[request.param].missing_packages():
        pytest.skip(f"{', '.join(missing)} is not installed; {FORMATS[request.param].install} installs it")
    return request.param


def test_a_file_gives_the_outputs_of_the_checkpoint_at_every_batch_size(format: str, export: Callable):
    path, report = export(format)
    assert {size: numbers["num_images"] for size, numbers in report["by_batch_size"].items()} == dict.fromkeys(
        ("1", "2", "7", "64"), 100
    )
    assert report["num_disagreements"] == 0
    assert report["max_abs_diff_probabilities"] < 1e-4
    assert {file.name for file in path.iterdir()} == FILES[format] | {"metadata.json"}
    deployed = sorted(FILES[format])[:2] if format == "paddle" else [*FILES[format], "metadata.json"]
    assert report["num_bytes"] == sum((path / name).stat().st_size for name in deployed)
    metadata = json.loads((path / "metadata.json").read_text())
    assert set(metadata["versions"]) == {"torch", *FORMATS[format].packages}
    assert metadata.get("max_batch_size") == (64 if format == "executorch" else None)


def test_a_network_that_paddle_cannot_read_is_one_line(export: Callable):
    if FORMATS["paddle"].missing_packages():
        pytest.skip(FORMATS["paddle"].install)
    settings = {"_target_": "imago.model.torchvision_net.TorchvisionNet", "name": "swin_t"}
    model = Classifier(swin_t(num_classes=2), ["a", "b"], Preprocess(224, 256, "center", (0.5,) * 3, (0.5,) * 3)).eval()
    model.network_settings = settings
    with pytest.raises(UserError) as caught:
        export("paddle", classifier=model)
    expected = "swin_t cannot be converted by x2paddle: Model is not supported yet; use another format, "
    assert str(caught.value) == expected + "e.g. format=onnx."


def test_executorch_computes_with_the_threads_that_are_asked_for(export: Callable):
    if FORMATS["executorch"].missing_packages():
        pytest.skip(FORMATS["executorch"].install)
    path, _ = export("executorch", verify=lambda predict, report: {})
    code = (
        "from executorch.extension.pybindings import portable_lib; from imago.export.executorch import load; "
        f"from pathlib import Path; load(Path({str(path)!r}), 3); print(portable_lib._threadpool_get_thread_count())"
    )
    done = subprocess.run([FORMATS["executorch"].python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "3"


FAILING = """
import os
from imago.errors import UserError
def load(path, num_threads):
    def predict(images):
        if images[0, 0, 0, 0] == 1:
            raise UserError("one line")
        if images[0, 0, 0, 0] == 2:
            raise ValueError("a bug")
        if images[0, 0, 0, 0] == 3:
            os.abort()
        print("text on the screen is no output")
        return images.astype("float32").mean((2, 3)), images.astype("float32").max((2, 3))
    return predict
"""


@pytest.fixture
def predict(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """The function of a module that runs in another process of this environment."""
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT_ROOT / 'src'}")
    (tmp_path / "failing.py").write_text(FAILING)
    write_metadata(tmp_path, {})
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import failing; "
    start += (
        "sys.modules['imago.export.failing'] = failing; from imago.export.environment import run; run(sys.argv[1:])"
    )
    remote = RemoteFormat("failing", tmp_path / "python")
    monkeypatch.setattr(remote, "_command", (environment.sys.executable, "-c", start))
    return remote.load(tmp_path, 1)


def test_arrays_arrive_as_they_are_and_printed_text_does_not_disturb_them(predict: Callable):
    images = np.random.default_rng(0).integers(4, 256, (5, 3, 4, 4), dtype=np.uint8)
    for batch in (images, images[:1]):
        means, maxima = predict(batch)
        np.testing.assert_allclose(means, batch.mean((2, 3)), rtol=1e-6)
        np.testing.assert_array_equal(maxima, batch.max((2, 3)))


def test_an_error_of_the_user_is_its_last_line(predict: Callable):
    with pytest.raises(UserError, match="^one line$"):
        predict(np.full((1, 3, 2, 2), 1, np.uint8))


def test_a_bug_in_the_process_has_its_traceback(predict: Callable):
    with pytest.raises(RuntimeError, match=r"(?s)ended with exit code 1:.*Traceback.*ValueError: a bug"):
        predict(np.full((1, 3, 2, 2), 2, np.uint8))


def test_a_crash_of_a_library_in_the_process_is_one_line(predict: Callable):
    with pytest.raises(
        UserError, match=r"^\S*python\S* was ended by SIGABRT: too little memory, or a crash; use another"
    ):
        predict(np.full((1, 3, 2, 2), 3, np.uint8))
