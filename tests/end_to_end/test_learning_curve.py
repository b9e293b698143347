"""The learning curve from the command line: four runs that differ in their training images, and the report."""

from collections.abc import Callable
from pathlib import Path

import pytest
from short_runs import summary, train


@pytest.mark.slow
@pytest.mark.xdist_group("sweep")
def test_the_runs_have_parts_of_the_training_images_and_as_many_steps(tmp_path: Path, command: Callable):
    short = ("data=shapes", "trainer.max_steps=3", "model.hidden_features=16", "sweep_name=curve")
    done = train(tmp_path, "-m", "experiment=learning_curve", *short, warm_children=True)
    assert "data.train_fraction=1.0" in done.stdout
    assert "sweep=" not in done.stdout.partition("next:")[2]
    runs = [summary(tmp_path / "sweeps" / "curve" / str(number)) for number in range(4)]
    assert [run["num_train_images"] for run in runs] == [500, 1000, 2500, 5000]
    assert {(run["steps"], run["val"]["num_images"]) for run in runs} == {(3, 1000)}
    report = command("src/report.py", f"run={tmp_path / 'sweeps' / 'curve'}", f"paths.log_dir={tmp_path}")
    assert report.returncode == 0, report.stderr
    assert "twice the data (10,000 training images): +" in report.stdout


@pytest.mark.slow
def test_without_m_it_is_one_line(command: Callable, tmp_path: Path):
    done = command("src/train.py", "experiment=learning_curve", f"paths.log_dir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: sweep: this is a setting of a sweep, which needs -m")
