"""`tune=lr` suggests a learning rate and writes its curve; it saves no checkpoint."""

import csv
from pathlib import Path

import pytest
from short_runs import summary, train


@pytest.mark.slow
def test_tune_suggests_a_learning_rate_and_saves_no_checkpoint(tmp_path: Path):
    small = ("data.batch_size=16", "model.hidden_features=16")
    done = train(tmp_path, "data=shapes", "tune=lr", "run_name=tuned", "trainer.max_epochs=3", "augment=none", *small)
    run = tmp_path / "train" / "tuned"
    suggestion = summary(run)["tuned"]["optimizer.lr"]
    assert 1e-5 < suggestion < 1
    assert f"optimizer.lr={suggestion:.1e}" in done.stdout
    assert "tune=lr" not in done.stdout.partition("next:")[2]
    assert {"lr_curve.csv", "lr_curve.png"} <= {path.name for path in run.iterdir()}
    assert not (run / "checkpoints").exists()
    assert not {"val", "test"} & summary(run).keys()
    rows = list(csv.DictReader((run / "lr_curve.csv").open()))
    lrs = [float(row["lr"]) for row in rows]
    assert lrs[0] == pytest.approx(1e-6)
    assert lrs[20] == pytest.approx(1e-5, rel=0.05)
