"""Tiny runs of `train.py` that tests interrupt, resume and compare, in processes that start at once."""

from pathlib import Path

from warm_python import WarmProcess, warm_imago

from imago.paths import PROJECT_ROOT

# 3 epochs of 5 batches, of which 2 make a step: the last step of an epoch has 1. Samples are mixed and recolored, and
# the learning rate follows a schedule in steps.
TINY = (
    *("data=shapes", "data.batch_size=32", "model.hidden_features=16", "model.dropout=0.1"),
    *("trainer.max_epochs=3", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"),
    *("trainer.limit_test_batches=1", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2"),
    *("augment.mixup_alpha=0.2", "augment.brightness=0.2"),
)
TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork")


class WarmRuns:
    """Starts runs whose directories are below `logs`."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, warm_children: bool = False, **environment: str) -> WarmProcess:
        """Start `train.py` with these settings."""
        python_path = {"PYTHONPATH": str(PROJECT_ROOT / "tests")}
        typed = (*arguments, f"paths.log_dir={self.logs}")
        return warm_imago().start("src/train.py", *typed, warm_children=warm_children, **(python_path | environment))

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> WarmProcess:
        """Run `train.py` and wait; the exit code must be `expect`."""
        run = self.start(*arguments, **environment)
        exit_code = run.wait()
        assert exit_code == expect, f"exit code {exit_code}\n{run.text[-5000:]}"
        return run
