"""The commands as on Windows and macOS: without the modules and names that Python does not have there."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from drawn_images import photo
from PIL import Image
from short_runs import summary
from warm_python import WarmProcess, is_alive, left_over, warm_imago

from imago.paths import PROJECT_ROOT
from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("other_systems")]  # their runs are compared

TINY = (
    *("data=image_folder", "preprocess.size=24", "data.batch_size=4", "model.hidden_features=16", "model.dropout=0.1"),
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=2", "augment=crop_flip", "augment.mixup_alpha=0.2"),
)


class System:
    """Runs commands as on one system; the logs are below `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.logs = name, folder / name
        self.python = folder / f"python_{name}"
        self.code = f'import other_system; other_system.run("{name}")'
        self.python.write_text(f"#!/bin/sh\nexec {warm_imago().executable} -c '{self.code}' \"$@\"\n")
        self.python.chmod(0o755)

    def start(self, script: str, *arguments: str) -> WarmProcess:
        variables = {"PYTHONPATH": str(PROJECT_ROOT / "tests"), "OTHER_PYTHON": str(self.python)}
        return warm_imago().start("-c", self.code, f"src/{script}.py", *arguments, **variables)

    def run(self, script: str, *arguments: str, expect: int = 0) -> str:
        """Run a command; return what it printed on stdout, or its error if it should fail."""
        process = self.start(script, *arguments)
        assert process.wait() == expect, process.text[-5000:]
        assert "Traceback" not in process.text
        assert left_over(process) == []
        return process.stderr if expect else process.stdout

    def train(self, *arguments: str, expect: int = 0) -> str:
        return self.run("train", *arguments, f"paths.log_dir={self.logs}", expect=expect)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 images each."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(40):
        file = root / f"class {number % 2}" / f"é{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(number, 32)).save(file)
    return root


@pytest.fixture(scope="module")
def macos_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of macOS, with a cache."""
    macos = System("macos", tmp_path_factory.mktemp("logs"))
    typed = (*TINY, f"data.root={photos}", f"data.cache_dir={macos.logs / 'cache'}")
    (macos.logs / "screen.txt").write_text(macos.train(*typed, "run_name=whole"), "utf-8")
    return macos.logs / "train" / "whole"


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> System:
    return System("windows", tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def windows_run(windows: System, photos: Path) -> Path:
    """A run of Windows that Ctrl-C has interrupted in its first epoch, and that was resumed."""
    run = windows.logs / "train" / "run"
    typed = (*TINY, f"data.root={photos}", "data.cache=none", "run_name=run")
    windows.train(*typed, "+callbacks.broken={_target_: interruptions.CtrlC, step: 3}", expect=130)
    assert (summary(run)["status"], summary(run)["reason"]) == ("stopped", "Ctrl-C")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3
    windows.train(f"resume={run}", "callbacks.broken=null")
    return run


def test_on_macos_images_are_cached_on_disk(macos_run: Path):
    logs = macos_run.parents[1]
    assert f"image cache: in {logs / 'cache'}" in (logs / "screen.txt").read_text("utf-8")
    assert len(list((logs / "cache").glob("*.pixels"))) == 2  # of the training and the validation images
    assert (logs / "latest").resolve() == macos_run


def test_on_windows_an_interrupted_run_is_resumed_to_the_weights_of_another_system(windows_run: Path, macos_run: Path):
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (windows_run, macos_run))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    assert summary(windows_run)["status"] == "finished"
    assert summary(windows_run)["test"] == summary(macos_run)["test"]
    assert not (windows_run.parents[1] / "latest").exists()
    log = (windows_run / "train.log").read_text("utf-8")
    assert log.count("latest does not point to this run: A required privilege is not held") == 2  # once each start


def test_on_windows_a_run_is_evaluated_exported_and_reported(windows: System, windows_run: Path, photos: Path):
    windows.run("eval", f"run={windows_run}", f"paths.log_dir={windows.logs}")
    metrics = json.loads((windows_run / "eval/test/metrics.json").read_text("utf-8"))
    assert metrics["acc"] == summary(windows_run)["test"]["acc"]
    windows.run("export", f"run={windows_run}", f"paths.log_dir={windows.logs}")
    onnx = windows_run / "export" / "model.onnx"
    tables = []
    for model in (windows_run, onnx):
        printed = windows.run("predict", f"run={model}", f"input={photos}", f"paths.log_dir={windows.logs}")
        assert "é1" in printed
        folder = windows_run / "predictions"
        tables += [file.read_text("utf-8") for file in folder.glob("*.csv")]
        shutil.rmtree(folder)
    assert [table.count("é") for table in tables] == [40, 40]
    windows.run("report", f"run={windows_run}")
    assert "class 1" in (windows_run / "report.html").read_text("utf-8")
    windows.run("check", f"data.root={photos}", "data=image_folder", f"paths.log_dir={windows.logs}", "run_name=check")
    assert json.loads((windows.logs / "check/check/check.json").read_text("utf-8"))


def test_on_windows_a_sweep_stops_and_continues_its_runs(windows: System, photos: Path):
    typed = (*TINY[:-4], f"data.root={photos}", "data.cache=none", "test=false", f"paths.log_dir={windows.logs}")
    typed += ("trainer.max_epochs=20", "trainer.log_every_n_steps=2")
    arguments = ("-m", "seed=1,2", *typed, "sweep_name=sweep")
    sweep = windows.logs / "sweeps" / "sweep"
    process = windows.start("train", *arguments)
    while not (sweep / "0" / "metrics.csv").exists():
        assert is_alive(process.pid), process.text
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.text
    assert "stopped; to continue: " in process.stdout
    assert summary(sweep / "0")["status"] == "stopped"
    windows.run("train", *arguments, "resume=auto")
    assert [summary(sweep / name)["status"] for name in "01"] == ["finished", "finished"]
    stops = [(sweep / name / "output.log").read_text("utf-8").count("stopped by") for name in "01"]
    assert stops == [1, 0]


REFUSED = {
    "several processes": (
        "train",
        "trainer.devices=2 trainer.strategy=ddp_fork: several processes need Linux or macOS",
    ),
    "memory": ("train", "data.cache=ram: only Linux has files in memory"),
    "service": ("serve", "serve.py needs Linux or macOS"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_on_windows_what_cannot_work_is_refused_in_one_line(
    windows: System, windows_run: Path, photos: Path, what: str
):
    script, text = REFUSED[what]
    typed = [*TINY, f"data.root={photos}", f"paths.log_dir={windows.logs}", "data.cache=ram"]
    if what == "several processes":
        typed += ["trainer.devices=2", "trainer.strategy=ddp_fork", "trainer.accelerator=cpu"]
    error = windows.run(script, *([f"model={windows_run}"] if script == "serve" else typed), expect=2)
    assert error.startswith(f"error: {text}")
    assert error.count("\n") == 1
