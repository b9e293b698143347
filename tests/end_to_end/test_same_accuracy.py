"""One checkpoint has one accuracy: in the final test, in eval.py, in predict.py and as an ONNX file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_runs import csv_rows, summary, train

from imago.data.cifar10 import CIFAR10DataModule


def write_test_set(root: Path, folder: Path) -> dict[str, str]:
    """Write CIFAR-10's test images as PNG files; return the class of each by its file name."""
    loading = {"val_fraction": 0.1, "batch_size": 100, "num_workers": 0, "augment": {}, "seed": 0}
    data = CIFAR10DataModule(root=str(root), data_dir=str(folder.parent / "data"), **loading)
    data.set_up_data()
    images, truth = data.splits.test, {}
    folder.mkdir()
    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        file = folder / f"{number:05d}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(file, compress_level=0)
        truth[str(file)] = data.class_names[label]
    return truth


@pytest.mark.soak
@pytest.mark.needs_data
@pytest.mark.timeout(1200)
def test_checkpoint_and_onnx_predict_all_10000_test_images_alike_in_eval_and_predict(
    real_data: Path, tmp_path: Path, command: Callable
):
    def run_command(*arguments: str) -> None:
        done = command(*arguments, f"paths.log_dir={tmp_path / 'logs'}", IMAGO_DATA_DIR=str(real_data))
        assert done.returncode == 0, done.stdout + done.stderr

    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=60", "run_name=cifar")
    train(tmp_path / "logs", "data=cifar10", f"data.root={real_data}", *short)
    run = tmp_path / "logs" / "train" / "cifar"
    truth = write_test_set(real_data, tmp_path / "images")
    exported = run / "export" / "model.onnx"
    run_command("src/export.py", f"run={run}", "parity_samples=100")
    predicted, sets = {}, []
    for name, model in (("checkpoint", run), ("onnx", exported)):
        run_command("src/eval.py", f"run={model}")
        folder = run / "eval" / ("test" if model == run else "test-model.onnx")
        found = json.loads((folder / "metrics.json").read_text())
        assert (found["acc"], found["num_images"]) == (summary(run)["test"]["acc"], 10_000), name
        predicted[f"eval {name}"] = [row["predicted"] for row in csv_rows(folder / "predictions.csv")]
        output = tmp_path / f"{name}.csv"
        run_command("src/predict.py", f"run={model}", f"input={tmp_path / 'images'}", f"output={output}", "top_k=1")
        predictions = csv_rows(output)
        num_correct = sum(row["predicted"] == truth[row["file"]] for row in predictions)
        assert num_correct == round(10_000 * summary(run)["test"]["acc"]), name
        for level, measured in found["prediction_sets"].items():
            num_covered = sum(truth[row["file"]] in row[f"set_{level}"].split("; ") for row in predictions)
            assert num_covered == round(10_000 * measured["coverage"]), name
            assert measured["expected_95"][0] <= measured["coverage"] <= measured["expected_95"][1], name
        sets.append([(row["set_90"], row["set_95"], row["unlike_training"]) for row in predictions])
        predicted[f"predict {name}"] = [row["predicted"] for row in predictions]
    assert sets[0] == sets[1]
    first, *others = map(np.array, predicted.values())
    assert len(first) == 10_000
    assert [int((first != other).sum()) for other in others] == [0, 0, 0]
