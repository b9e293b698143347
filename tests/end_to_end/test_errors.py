"""An invalid setting ends in one line and exit code 2, without a traceback and without importing torch."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr=1: there is no setting 'optimizer.lrr'; did you mean optimizer.lr?"),
        (["model=simple_cn"], "model=simple_cn: there is no such option; model can be simple_cnn"),
        (["optimizer.lr=abc"], "optimizer.lr=abc: expected a number (default: 0.002), got text"),
        (["trainer.max_step=3"], "trainer.max_step=3: there is no setting 'trainer.max_step'; did you mean"),
        (["trainer.max_steps=abc"], "trainer.max_steps=abc: expected a whole number, got text."),
        (["trainer.fast_dev_run=true"], "trainer.fast_dev_run=True is not supported: type debug=default"),
        (["model=resnet101"], "for other networks type model=torchvision model.name=resnet101."),
        (["model=timm"], "model.name has no value; type model.name=VALUE."),
        (["model.weights=."], "model.weights=. has no checkpoints/best.ckpt"),
        (["resume=nowhere"], "resume=nowhere does not exist; type a run directory"),
    ],
)
@pytest.mark.slow
def test_an_invalid_setting_is_one_line_without_importing_torch(
    without_torch: Callable, arguments: list[str], text: str
):
    done = without_torch("src/train.py", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert "+optimizer" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job", "--resolve"], ["--cfg", "job", "-p", "optimizer"]])
def test_help_and_settings_are_shown_without_importing_torch(without_torch: Callable, arguments: list[str]):
    done = without_torch("src/train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "optimizer" in done.stdout or "lr:" in done.stdout


@pytest.mark.parametrize(
    ("entry", "arguments", "text"),
    [
        ("src/eval.py", ["run=README.md", "split=train"], "split=train is not one of test, val, all.\n"),
        ("src/export.py", ["run=x", "parity_samples=0"], "parity_samples=0 must be 1 or more"),
        ("src/predict.py", ["run=README.md", "input="], "input= is empty; type an image"),
        ("src/predict.py", ["run=README.md", "input=${x}"], "a path cannot contain '${'"),
    ],
)
@pytest.mark.slow
def test_other_commands_find_an_invalid_setting_without_torch(without_torch: Callable, entry, arguments, text: str):
    done = without_torch(entry, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("entry", "text"), [("src/eval.py", "RUN/eval/SPLIT/"), ("src/predict.py", "RUN/predictions/TIME.csv")]
)
def test_help_is_about_the_command(without_torch: Callable, entry: str, text: str):
    shown = without_torch(entry, "--help").stdout
    assert text in shown
    assert "train.py" not in shown


@pytest.mark.slow
def test_a_data_root_that_does_not_exist_names_the_setting(command: Callable, tmp_path: Path):
    done = command("src/train.py", "data.root=/no/such place", f"paths.log_dir={tmp_path}")
    assert done.returncode == 2
    expected = "data.root=/no/such place does not exist; set it to the folder that contains cifar-10-batches-py; "
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in next(tmp_path.rglob("train.log")).read_text()
