"""Two processes on the CPU: one folder, one log, every test image counted once, and sweeps that cannot hang."""

import csv
import re
from pathlib import Path

import pytest
from short_runs import SHORT, summary, train
from warm_runs import TINY, WarmRuns

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # their runs are made once

TWO = (*SHORT, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=1")


def test_two_processes_share_one_directory_and_one_log_and_every_strategy_gives_the_same_numbers(tmp_path: Path):
    logs = tmp_path
    done = train(logs, *TWO, "run_name=my run=ddp")
    run = logs / "train" / "my run=ddp"
    assert [path.name for path in (logs / "train").iterdir()] == [run.name]
    assert not list(run.rglob("*ddp_process*"))
    assert len(re.findall(r"^epoch   1/1", done.stdout, re.MULTILINE)) == 1
    assert done.stdout.count("test accuracy") == 1
    assert (run / "train.log").read_text().count("epoch   1/1") == 1
    assert "64 per device" in done.stdout

    forked = train(logs, *TWO, "trainer.strategy=ddp_fork", "run_name=ddp_fork")
    ours, theirs = summary(logs / "train" / "ddp_fork"), summary(run)
    assert ours["status"] == theirs["status"] == "finished"
    assert theirs["test"]["num_images"] == 1000, "each test image is counted once"
    assert ours["test"]["acc"] == pytest.approx(theirs["test"]["acc"], abs=0.005)
    assert ours["val"] == theirs["val"]
    assert len(re.findall(r"^epoch   1/1", forked.stdout, re.MULTILINE)) == 1
    curves = [curves_of(logs / "train" / name / "metrics.csv") for name in (run.name, "ddp_fork")]
    assert curves[0] == curves[1]
    assert {"train/loss", "val/acc", "test/acc"} <= {name for _, name in curves[0]}


def curves_of(file: Path) -> list[tuple[str, str]]:
    """Return the step and name of every logged value."""
    rows = csv.DictReader(file.open(encoding="utf-8"))
    return sorted((row["step"], name) for row in rows for name, value in row.items() if value)


def sweep_with_a_failing_rank(runs: WarmRuns, name: str) -> None:
    broken = "+callbacks.broken={_target_: interruptions.RaiseWithSeed1, step: 1, rank: 1, seed: '${seed}'}"
    done = runs.run(
        *TINY, "trainer.devices=2", "trainer.accelerator=cpu", "-m", f"sweep_name={name}", "seed=1,2", broken, expect=1
    )
    sweep = runs.logs / "sweeps" / name
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "drivers"]
    assert summary(sweep / "0")["status"] == "failed"
    assert summary(sweep / "1")["status"] == "finished"
    assert "error: 1 trial failed" in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(20))
def test_a_failing_rank_never_hangs_a_sweep(runs: WarmRuns, attempt: int, record_property):
    record_property("rule", "sweeps that go on where a trial fails on one rank")
    sweep_with_a_failing_rank(runs, f"failing{attempt}")
