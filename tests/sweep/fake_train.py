"""Stands in for src/train.py: trains in milliseconds, and writes and resumes a run directory as a run does.

It is called as the driver calls `train.py`. The settings are lr (best near 0.1), epochs, pause_s (of each epoch) and
fails; `crash_at` kills the process at that epoch when it comes there for the first time.
"""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    typed = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    run = Path((typed.get("resume") or typed["hydra.run.dir"]).strip('"'))
    checkpoint = run / "checkpoints" / "last.ckpt"
    state = {"epoch": 0, "settings": typed, "values": []}
    if "resume" in typed:
        state = json.loads(checkpoint.read_text())
    settings = state["settings"]
    if settings.get("fails") == "config":
        sys.exit("error: lr=-1 must be greater than 0.")
    summary = {"status": "running", "pid": os.getpid(), "started": "2026-01-01T00:00:00+00:00"}

    def write(**entries) -> None:
        summary.update(entries)
        part = run / "summary.part"
        part.write_text(json.dumps(summary))
        part.replace(run / "summary.json")

    def stop(number, frame) -> None:
        write(status="stopped", reason=signal.Signals(number).name)
        os._exit(143)

    signal.signal(signal.SIGTERM, stop)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    (run / "provenance.json").write_text(json.dumps({"overrides": [f"{k}={v}" for k, v in settings.items()]}))
    write()
    for epoch in range(state["epoch"], int(settings.get("epochs", 1))):
        time.sleep(float(settings.get("pause_s", 0)))
        if settings.get("fails") == "later":
            write(status="failed", reason="the loss is NaN in epoch 1")
            sys.exit(2)
        marker = run / "crashed"
        if settings.get("crash_at") == str(epoch) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        lr, seed = float(settings.get("lr", 0.1)), int(settings.get("seed", 0))
        state["values"].append(round(1 - abs(lr - 0.1) - 0.1 / (epoch + 1) + 0.001 * seed, 6))
        state["epoch"] = epoch + 1
        part = checkpoint.with_suffix(".part")
        part.write_text(json.dumps(state))
        part.replace(checkpoint)
        with (run / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("step", "val/acc"), *enumerate(state["values"], 1)])
    epochs = len(state["values"])
    best = max(state["values"])
    write(status="finished", best_value=best, val={"acc": best}, epochs=epochs, seconds=0.1 * epochs)


if __name__ == "__main__":
    main()
