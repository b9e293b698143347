"""`eval.py` repeats the final test of a run, and evaluates other data by the names of its classes."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from short_runs import csv_rows, summary
from sklearn import metrics as sk

from imago.data import shapes
from imago.errors import ConfigError, UserError
from imago.inference.evaluate import evaluate as evaluate_command
from imago.inference.load import load_predictor
from imago.statistics.calibration import reliability


@pytest.fixture(scope="module")
def run(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests check the directory contents."""
    return shutil.copytree(exported_run, tmp_path_factory.mktemp("evaluated") / "train" / "short")


@pytest.fixture
def evaluate(command: Callable, tmp_path: Path) -> Callable:
    """Run `python src/eval.py` and return its output."""

    def start(*arguments: str, returncode: int = 0, **environment: str) -> str:
        done = command("src/eval.py", *arguments, f"paths.log_dir={tmp_path / 'logs'}", **environment)
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if returncode == 0 else done.stderr

    return start


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def result_of(run: Path, name: str) -> Path:
    """The one directory of results with this name, in which * is a part of a hash."""
    (folder,) = (run / "eval").glob(name)
    return folder


def write_folder(root: Path, class_names: tuple[str, ...], num_each: int, splits: tuple[str, ...]) -> None:
    """An image folder of some shapes, the same images in each split."""
    images, labels = shapes.render_split("test")
    for split in splits:
        for name in class_names:
            (root / split / name).mkdir(parents=True)
            for number, image in enumerate(images[labels == shapes.CLASS_NAMES.index(name)][:num_each]):
                Image.fromarray(image.transpose(1, 2, 0)).save(root / split / name / f"{number}.png")


@pytest.mark.slow
def test_the_accuracy_is_that_of_the_final_test_and_every_table_agrees(run: Path, evaluate: Callable):
    printed = evaluate(f"run={run}")
    folder, test = run / "eval" / "test", summary(run)["test"]
    found = metrics(folder)
    assert {file.name for file in folder.iterdir()} == {
        *("metrics.json", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png"),
        *("predictions.csv", "mistakes.npz"),
    }
    assert (found["acc"], found["num_images"]) == (test["acc"], test["num_images"])
    assert found["interval_95"] == test["interval_95"]
    assert f"{test['acc']:.2%}" in printed
    assert "the run's final test: the same" in printed
    assert "note:" not in printed

    assert "90 % sets  coverage " in printed
    sets = found["prediction_sets"]
    assert sets["90"]["coverage"] <= sets["95"]["coverage"]
    assert set(sets["90"]["per_class"]) == set(shapes.CLASS_NAMES)
    predictions = csv_rows(folder / "predictions.csv")
    true, predicted = ([row[key] for row in predictions] for key in ("true", "predicted"))
    assert sk.accuracy_score(true, predicted) == pytest.approx(test["acc"])
    assert found["f1"] == pytest.approx(sk.f1_score(true, predicted, average="macro", zero_division=0))
    table = csv_rows(folder / "per_class.csv")
    assert [row["class"] for row in table] == list(shapes.CLASS_NAMES)
    assert {row["n"] for row in table} == {"100"}
    counts = [[int(cell) for cell in list(row.values())[1:]] for row in csv_rows(folder / "confusion.csv")]
    assert (np.array(counts) == sk.confusion_matrix(true, predicted, labels=list(shapes.CLASS_NAMES))).all()
    assert Image.open(folder / "confusion.png").size > (600, 600)


@pytest.mark.slow
def test_both_splits_of_a_sweep_are_evaluated_and_val_is_as_in_training(run: Path, evaluate: Callable, tmp_path: Path):
    evaluate("-m", f"run={run}", "split=val,test", "ckpt=best", "data=shapes")  # the run's own data
    # Not equal: training validates in bf16 where the machine has it, evaluation is always in fp32.
    assert metrics(result_of(run, "val-shapes-*"))["acc"] == pytest.approx(summary(run)["val"]["acc"], abs=0.01)
    assert not list((tmp_path / "logs").rglob("summary.json"))
    assert not (tmp_path / "logs" / "train").exists()


@pytest.mark.slow
def test_another_checkpoint_gets_a_directory_of_its_own(run: Path, evaluate: Callable, tmp_path: Path):
    printed = evaluate(f"run={run}", "ckpt=last", "batch_size=1000")
    assert metrics(run / "eval" / "test-last")["model"].endswith("last.ckpt")
    assert "final test" not in printed
    file = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "a,b [1].ckpt")
    evaluate(f"run={run}", f"ckpt={file}", f"output={tmp_path / 'out (1)'}")
    assert metrics(tmp_path / "out (1)")["acc"] == summary(run)["test"]["acc"]


@pytest.mark.slow
def test_results_of_another_network_or_dataset_never_replace_those_of_the_run(
    run: Path, evaluate: Callable, tmp_path: Path
):
    evaluate(f"run={run}")
    own, digest = metrics(run / "eval" / "test"), sha256((run / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()
    assert own["model_sha256"] == digest
    elsewhere = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "best.ckpt")
    printed = evaluate(f"run={run}", f"ckpt={elsewhere}")
    other = metrics(run / "eval" / f"test-best-{sha256(Path(elsewhere).read_bytes()).hexdigest()[:8]}")
    assert other["model"] == str(elsewhere)
    assert f"note: {elsewhere} is not a checkpoint of the run: it may have been trained on these images" in printed
    assert metrics(run / "eval" / "test") == own

    for number, parent in enumerate(("a", "b")):  # two roots of the same name
        write_folder(tmp_path / parent / "same", ("ring", "star"), 3 + number, ("train", "val", "test"))
        evaluate(f"run={run}", "data=image_folder", f"data.root={tmp_path / parent / 'same'}")
    lists = [tmp_path / "same.csv", tmp_path / "other" / "same.csv"]  # two lists over one root
    lists[1].parent.mkdir()
    for number, file in enumerate(lists):
        rows = [
            f"{split}/{name}/{n}.png,{name},{split}"
            for split in ("train", "val", "test")
            for name in ("ring", "star")
            for n in range(number, 3)
        ]
        file.write_text("\n".join(["path,label,split", *rows]))
        evaluate(f"run={run}", "data=image_list", f"data.root={tmp_path / 'a' / 'same'}", f"data.list_file={file}")
    found = sorted(metrics(folder)["num_images"] for folder in (run / "eval").glob("test-image_*-same-????????"))
    assert found == [4, 6, 6, 8]


@pytest.mark.slow
def test_classes_of_other_data_are_matched_by_name(run: Path, evaluate: Callable, tmp_path: Path):
    chosen = ("star", "circle", "ring")  # as folders they are sorted otherwise than in the network
    write_folder(tmp_path / "some shapes", chosen, 6, ("train", "val", "test"))
    printed = evaluate(f"run={run}", "data=image_folder", f"data.root={tmp_path / 'some shapes'}")
    folder = result_of(run, "test-image_folder-some shapes-*")
    found = csv_rows(folder / "predictions.csv")
    assert {(Path(row["image"]).parent.name, row["true"]) for row in found} == {(name, name) for name in chosen}
    model = load_predictor(run)
    samples = np.stack([np.asarray(Image.open(row["image"])).transpose(2, 0, 1) for row in found])
    expected = [shapes.CLASS_NAMES[index] for index in model.predict(samples)[0].argmax(axis=1)]
    assert [row["predicted"] for row in found] == expected
    assert metrics(folder)["num_images"] == 18
    assert "circle" in printed
    assert "cross " not in printed.partition("precision")[2]  # classes without images have no row on the screen


@pytest.mark.slow
def test_every_image_of_other_data_is_seen_with_split_all(run: Path, evaluate: Callable, tmp_path: Path):
    write_folder(tmp_path / "found", ("ring", "star"), 10, ("",))
    other = ("data=image_folder", f"data.root={tmp_path / 'found'}")
    printed = evaluate(f"run={run}", *other, "split=all")
    found = csv_rows(result_of(run, "all-image_folder-found-*") / "predictions.csv")
    assert {row["image"] for row in found} == {str(file) for file in (tmp_path / "found").rglob("*.png")}
    assert all(Path(row["image"]).parent.name == row["true"] for row in found)
    assert "ImageFolder all, 20 images, each seen once" in printed
    printed = evaluate(f"run={run}", *other)
    assert "note: the dataset has no test split: these are 2 of its 20; split=all takes all" in printed
    printed = evaluate(f"run={run}", "split=all", returncode=2)
    assert "split=all would count the images that the run was trained on; type other data" in printed


@pytest.mark.slow
def test_the_images_of_the_run_in_another_split_are_refused(run: Path, evaluate: Callable):
    printed = evaluate(f"run={run}", "data=shapes", "data.fold=0", "split=val", returncode=2)
    assert "split=val of the run's own images is drawn differently here than in its training" in printed


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_before_any_data_is_read(run: Path, evaluate: Callable, tmp_path: Path):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    file = damaged / "checkpoints" / "best.ckpt"
    file.write_bytes(file.read_bytes()[:1000])
    printed = evaluate(f"run={damaged}", "data=image_folder", f"data.root={tmp_path / 'nowhere'}", returncode=2)
    assert f"{file} is truncated or not a checkpoint (1000 bytes); use another checkpoint of the run." in printed


@pytest.mark.slow
def test_probabilities_are_calibrated_and_a_checkpoint_without_a_temperature_can_get_one(
    run: Path, evaluate: Callable, tmp_path: Path
):
    copy = shutil.copytree(run, tmp_path / "copy")
    fitted = json.loads((copy / "checkpoints" / "calibration.json").read_text())["best.ckpt"]
    printed = evaluate(f"run={copy}", "split=val")
    found, predictions = metrics(copy / "eval" / "val"), csv_rows(copy / "eval" / "val" / "predictions.csv")
    probability = np.array([float(row["probability"]) for row in predictions])
    is_correct = np.array([row["true"] == row["predicted"] for row in predictions])
    assert found["calibration_temperature"] == fitted["calibration_temperature"]
    assert found["ece"] == pytest.approx(reliability(probability, is_correct).ece, abs=1e-5)
    assert found["ece"] == pytest.approx(fitted["ece_after"])
    assert found["nll"] == pytest.approx(fitted["nll_after"])
    assert f"temperature {fitted['calibration_temperature']:.3f}, fitted on val" in printed

    evaluate(f"run={copy}", "split=val", "calibrate=none")
    assert "calibration_temperature" not in metrics(copy / "eval" / "val-uncalibrated")
    assert metrics(copy / "eval" / "val-uncalibrated")["nll"] == pytest.approx(fitted["nll_before"])
    assert metrics(copy / "eval" / "val") == found  # which it does not replace

    (copy / "checkpoints" / "calibration.json").unlink()
    printed = evaluate(f"run={copy}", "split=val")
    assert "probabilities are not calibrated: " in printed
    assert re.search(r"best\.ckpt; fit one with \S*python \S*src/eval\.py run=\S*/copy calibrate=fit\n", printed)
    assert "calibration_temperature" not in metrics(copy / "eval" / "val")
    assert metrics(copy / "eval" / "val")["ece"] == pytest.approx(fitted["ece_before"])
    printed = evaluate(f"run={copy}", "calibrate=fit")
    assert "not calibrated" not in printed
    again = json.loads((copy / "checkpoints" / "calibration.json").read_text())["best.ckpt"]
    assert again["calibration_temperature"] == pytest.approx(fitted["calibration_temperature"])


@pytest.mark.slow
def test_changed_data_of_the_run_is_reported(run: Path, evaluate: Callable, tmp_path: Path):
    changed = shutil.copytree(run, tmp_path / "changed")
    file = changed / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "another"}))
    printed = evaluate(f"run={changed}")
    assert "note: the dataset of the run has changed since training" in printed
    assert "final test" not in printed


@pytest.mark.slow
def test_an_exported_file_is_evaluated_like_its_checkpoint_or_on_typed_data(
    run: Path, evaluate: Callable, tmp_path: Path
):
    exported, tables = run / "export" / "model.onnx", []
    for model, folder in ((run, "test"), (exported, "test-model.onnx")):
        evaluate(f"run={model}")
        tables.append(csv_rows(run / "eval" / folder / "predictions.csv"))
    shares = [[float(row.pop("probability")) for row in table] for table in tables]
    assert tables[0] == tables[1]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)

    alone = shutil.copy(exported, tmp_path / "alone.onnx")
    printed = evaluate(f"run={alone}", returncode=2)
    assert "is not in a run directory that names its data; add e.g. data=image_folder" in printed
    evaluate(f"run={alone}", "data=shapes", "split=val")
    assert metrics(result_of(tmp_path, "val-shapes-????????-alone.onnx"))["num_images"] == 1000


@pytest.fixture(scope="module")
def settings(compose: Callable) -> DictConfig:
    cfg = compose("run=README.md", config_name="eval")
    OmegaConf.set_struct(cfg, False)  # so that data= can be added
    return cfg


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"run": None}, "run= is empty; type a run directory"),
        ({"threads": 0}, "threads=0 must be 1 or more, or auto"),
        ({"threads": "all"}, "threads=all must be 1 or more, or auto"),
        ({"run": "no/such run"}, "run=no/such run does not exist; type a run directory such as logs/latest"),
        ({"run": "tests"}, "run=tests has no checkpoints/best.ckpt; it is not a run directory"),
        ({"calibrate": "fit", "data": {}}, "calibrate=fit fits on the val images of the run"),
        ({"run": "x.onnx", "calibrate": "fit"}, "calibrate=fit: run=x.onnx is an ONNX file; calibrate its run"),
        ({"run": "x.onnx", "calibrate": "none"}, "calibrate=none: run=x.onnx is an ONNX file; calibrate its run"),
        ({"calibrate": "off"}, "calibrate=off is not one of auto, none, fit"),
        ({"run": "x.onnx", "tta": "flip"}, "tta=flip needs a checkpoint; run=x.onnx is an ONNX file"),
        ({"split": "train"}, "split=train is not one of test, val, all"),
        ({"ckpt": "last"}, "ckpt=last selects a checkpoint of a run directory, but run=README.md is a file"),
        ({"accelerator": "tpu"}, "accelerator=tpu is not one of auto, cpu, gpu"),
        ({"ood": "x", "calibrate": "none"}, "ood=x needs what is fitted on val; leave calibrate=none out"),
        ({"preprocess": {"size": 64}}, "preprocess.size=64 is a setting of model=NAME; leave it out"),
        ({"class_names": "names.txt"}, "class_names=names.txt is a setting of model=NAME; leave it out"),
        ({"corrupt_samples": 3}, "corrupt_samples=3 is a setting of corrupt=; leave it out"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"output": "README.md"}, "output=README.md is a file; type a directory"),
        ({}, "run=README.md is not in a run directory that names its data"),
    ],
)
def test_an_invalid_setting_is_one_line(settings: DictConfig, changes: dict, text: str):
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        evaluate_command(OmegaConf.merge(settings, changes))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_run_is_not_calibrated_on_the_val_images_of_this_one(
    settings: DictConfig, tmp_path: Path
):
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
        (tmp_path / name / "config.yaml").write_text("data: null")
    own, other = (f"{tmp_path / name}/checkpoints/best.ckpt" for name in ("a", "b"))
    typed = {"run": str(tmp_path / "a"), "calibrate": "fit"}
    with pytest.raises(ConfigError, match=f"calibrate=fit: ckpt={other} is not of run=.*/a, on whose val") as line:
        evaluate_command(OmegaConf.merge(settings, typed | {"ckpt": other}))
    assert "\n" not in str(line.value)
    for ckpt in ("best", own):
        with pytest.raises(UserError, match="names no dataset"):  # the next step
            evaluate_command(OmegaConf.merge(settings, typed | {"ckpt": ckpt}))
