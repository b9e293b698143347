"""Write run directories with the files of `train.py` and `eval.py`, for tests of the modules that read them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

FINISHED = {
    "status": "finished",
    "started": "2026-03-01T10:00:00+00:00",
    "epochs": 3,
    "val": {"acc": 0.7},
    "best_epoch": 2,
    "test": {"acc": 0.6, "interval_95": [0.57, 0.63], "num_images": 1000},
    "seconds": 12.5,
    "images_per_s": 900.0,
    "data_wait_share": 0.05,
}
CURVES = """step,train/loss_step,lr,epoch,val/loss,val/acc,train/loss,train/acc,test/acc
4,1.9,0.1,0,,,,,
9,,,0,1.5,0.4,1.8,0.35,
19,0.9,0.05,1,0.8,0.7,1.0,0.66,
20,,,2,,,,,0.6
"""


def make_run(folder: Path, seed: int = 1, lr: float = 0.1, config: dict | None = None, **summary) -> Path:
    """Write `summary.json`, `metrics.csv`, `provenance.json` and a `config.yaml` with the same copies as a real one."""
    folder.mkdir(parents=True)
    optimizer = {"_target_": "torch.optim.AdamW", "lr": lr}
    settings = {
        "seed": seed,
        "run_name": folder.name,
        "paths": {"run_dir": str(folder)},
        "data": {"_target_": "imago.data.shapes.ShapesDataModule", "seed": seed, "batch_size": 32},
        "model": {"_target_": "imago.model.simple_cnn.SimpleCNN", "dropout": 0.0},
        "optimizer": optimizer,
        "task": {"_recursive_": False, "net": {"dropout": 0.0}, "optimizer": optimizer},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}, "progress": {"refresh_every_n_steps": seed}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    (folder / "summary.json").write_text(json.dumps(FINISHED | summary))
    (folder / "metrics.csv").write_text(CURVES)
    provenance = {"command": "python src/train.py", "overrides": ["seed=1"], "git": {"commit": "abc", "diff": "+x"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def make_evaluation(
    run: Path,
    labels: Sequence[int],
    predicted: Sequence[int],
    probability: Sequence[float] | None = None,
    images: Sequence[str] | None = None,
    class_names: Sequence[str] = ("ant", "bee", "cat"),
    split: str = "test",
    **metadata,
) -> Path:
    """Write the files of `RUN/eval/SPLIT` that a report reads."""
    folder = run / "eval" / split
    folder.mkdir(parents=True)
    probabilities = probability if probability is not None else np.full(len(labels), 0.8)
    names = images if images is not None else range(len(labels))
    rows = zip(names, labels, predicted, probabilities, strict=True)
    with (folder / "predictions.csv").open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "probability"])
        writer.writerows([name, class_names[a], class_names[b], f"{p:.6f}"] for name, a, b, p in rows)
    with (folder / "per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "precision", "recall", "f1", "n"])
        writer.writerows([name, 0, 0, 0, 0] for name in class_names)
    metrics = {"interval_95": [0.5, 0.7], "data_fingerprint": "f1", "data_root": "/data"} | metadata
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def make_sweep(folder: Path, num_settings: int = 9) -> Path:
    """Write the directories of a sweep over three settings, of which one depends on another; the last trial failed."""
    folder.mkdir(parents=True)
    sweep = {
        "objective": "val/acc",
        "direction": "maximize",
        "keys": ["optimizer", "optimizer.lr", "optimizer.momentum"],
    }
    test = {"runs": ["7"], "acc": [0.7], "interval_95": [0.6, 0.8], "num_images": 100}
    (folder / "sweep.json").write_text(json.dumps(sweep | {"is_monitored": True, "test": test}))
    for number in range(num_settings):
        run = folder / str(number)
        run.mkdir()
        typed = [f"optimizer={'sgd' if number % 2 else 'adamw'}", f"optimizer.lr={0.001 * 2**number:g}"]
        typed += [f"optimizer.momentum=0.{number}"] if number % 2 else []
        (run / "trial.json").write_text(json.dumps({"overrides": typed}))
        value, status = 0.5 + 0.01 * number, "failed" if number == num_settings - 1 else "finished"
        entries = {
            "best_value": value,
            "val": {"acc": value},
            "reason": "the loss is nan " * 9 if status == "failed" else None,
        }
        (run / "summary.json").write_text(json.dumps({"status": status, "epochs": 2, "seconds": 9.5} | entries))
        (run / "metrics.csv").write_text(f"step,val/acc\n10,{value - 0.1}\n20,{value}\n")
    return folder
