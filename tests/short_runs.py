"""Short runs of `python src/train.py` for the tests that need one."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

from warm_python import warm_imago

# 2 epochs of 12 batches of the drawn shapes, one thread: seconds, and the accuracy rises.
# fp32: in bf16, which `auto` takes on some CPUs, the accuracy on val is not exactly that of eval.
FLOAT = "trainer.precision=32-true"
SHORT = ("data=shapes", "trainer.max_epochs=2", "trainer.limit_train_batches=12", "trainer.log_every_n_steps=5", FLOAT)


# The sweep of the README, as printed.
SWEEP = ("-m", "optimizer.lr=1e-3,3e-3", "seed=1,2")


def train(log_dir: Path, *arguments: str, check: bool = True, **settings: Any) -> subprocess.CompletedProcess:
    """Run `python src/train.py` with its logs below `log_dir`."""
    done = warm_imago().run("src/train.py", *arguments, f"paths.log_dir={log_dir}", **settings)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))
