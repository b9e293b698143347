"""Two processes on the CPU: one folder, one log, every test image counted once, and sweeps that cannot hang."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from short_runs import SHORT, summary, train

from imago.paths import PROJECT_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # their runs are made once

TWO = (*SHORT, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=1")

FAIL_ON_RANK_1 = '''
from lightning.pytorch import Callback

class FailOnRank1(Callback):
    """Raises on the second process, in the first trial only."""

    def __init__(self, seed):
        self.seed = seed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and str(self.seed) == "1" and batch_idx == 2:
            raise ValueError("rank 1 gives up")
'''


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def with_ddp(logs: Path) -> tuple[Path, str]:
    done = train(logs, *TWO, "run_name=my run=ddp")
    return logs / "train" / "my run=ddp", done.stdout


def test_two_processes_share_one_folder_and_one_log(with_ddp: tuple[Path, str], logs: Path):
    run, screen = with_ddp
    assert [path.name for path in (logs / "train").iterdir()] == [run.name]
    assert not list(run.rglob("*ddp_process*"))
    assert len(re.findall(r"^epoch   1/1", screen, re.MULTILINE)) == 1
    assert screen.count("test accuracy") == 1
    assert (run / "train.log").read_text().count("epoch   1/1") == 1
    assert "64 per device" in screen


def test_each_test_image_is_counted_once(with_ddp: tuple[Path, str]):
    found = summary(with_ddp[0])
    assert found["status"] == "finished"
    assert found["test"]["num_images"] == 1000


@pytest.mark.parametrize("strategy", ["ddp_fork"])
def test_every_strategy_gives_the_same_numbers(with_ddp: tuple[Path, str], logs: Path, strategy: str):
    done = train(logs, *TWO, f"trainer.strategy={strategy}", f"run_name={strategy}")
    ours, theirs = summary(logs / "train" / strategy), summary(with_ddp[0])
    assert ours["status"] == "finished"
    assert ours["test"]["acc"] == pytest.approx(theirs["test"]["acc"], abs=0.005)
    assert ours["val"] == theirs["val"]
    assert len(re.findall(r"^epoch   1/1", done.stdout, re.MULTILINE)) == 1


def sweep_with_a_failing_rank(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAIL_ON_RANK_1)
    broken = ("+callbacks.broken={_target_: failing.FailOnRank1, seed: '${seed}'}", "extra_targets=[failing.*]")
    arguments = (*TWO, "-m", "run_name=failing", "seed=1,2", *broken)
    done = train(logs, *arguments, check=False, PYTHONPATH=str(tmp_path))
    sweep = logs / "sweeps" / "failing"
    assert done.returncode == 1
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1"]
    assert summary(sweep / "0")["status"] == "failed"
    assert summary(sweep / "1")["status"] == "finished"
    assert "1 of 2 trials failed" in done.stderr


def test_a_trial_that_fails_on_one_rank_does_not_hang_the_sweep(tmp_path: Path):
    sweep_with_a_failing_rank(tmp_path / "logs", tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(20))
def test_a_failing_rank_never_hangs_a_sweep(attempt: int, tmp_path: Path, record_property):
    record_property("rule", "sweeps that go on where a trial fails on one rank")
    sweep_with_a_failing_rank(tmp_path / "logs", tmp_path)


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGINT, 130, "Ctrl-C"), pytest.param(signal.SIGTERM, 143, "SIGTERM", marks=pytest.mark.soak)],
)
def test_a_stopped_run_saves_and_has_the_reason_in_its_summary(tmp_path: Path, number: int, code: int, reason: str):
    arguments = (*SHORT, "run_name=stopped", "trainer.max_epochs=50", f"paths.log_dir={tmp_path}")
    process = subprocess.Popen(
        [sys.executable, "src/train.py", *arguments],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        # A script that runs the tests in the background hands down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"epoch   1/"):
            process.send_signal(number)
    assert process.wait(60) == code
    run = tmp_path / "train" / "stopped"
    assert (summary(run)["status"], summary(run)["reason"]) == ("stopped", reason)
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= 12
