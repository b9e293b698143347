"""`eval.py ood=DATA` measures how well images of no known class are told apart; checkpoint, ONNX and predict agree."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from short_runs import csv_rows
from sklearn.metrics import roc_auc_score

from imago.data import shapes
from imago.errors import ConfigError, DataError
from imago.images import read_image, resize_and_crop
from imago.inference.load import Predictor, load_predictor
from imago.inference.unknown_images import check_unknown, evaluate_unknown, ood_name


@pytest.fixture(scope="module")
def run(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests check the directory contents."""
    return shutil.copytree(exported_run, tmp_path_factory.mktemp("unknown") / "train" / "short")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 images of noise in two subfolders, a damaged image and a text."""
    folder, random = tmp_path_factory.mktemp("data") / "noise (1)", np.random.default_rng(0)
    for number in range(40):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    (folder / "bad.png").write_bytes(file.read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def start(command: Callable, tmp_path: Path) -> Callable:
    """Run a command, return its output."""

    def run_command(*arguments: str, returncode: int = 0) -> str:
        done = command(*arguments, f"paths.log_dir={tmp_path / 'logs'}")
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run_command


def image_score(model: Predictor, file: Path) -> float:
    pixels = resize_and_crop(read_image(file), model.preprocess).transpose(2, 0, 1)
    return float(model.unknown_detector.scores(model.predict(pixels[None].copy())[0])[0])


@pytest.mark.slow
def test_eval_and_predict_agree_for_the_checkpoint_and_the_onnx_file(
    run: Path, noise: Path, start: Callable, tmp_path: Path
):
    found, marks = [], []
    for model in (run, run / "export" / "model.onnx"):
        printed = start("src/eval.py", f"run={model}", f"ood={noise}", f"output={tmp_path / 'results'}")
        assert re.search(rf"(?m)^unknown +40 images of {re.escape(str(noise))}$", printed)
        assert len(re.findall(r"(?m)^(?:AUROC|FPR at 95 %|(?:un)?known marked) +[\d.]+%, 95 % interval ", printed)) == 4
        assert f"error: {noise / 'bad.png'} is damaged" in printed
        measured = json.loads((tmp_path / "results" / "metrics.json").read_text())["unknown_images"]
        assert (measured["data"], measured["num_known"], measured["num_unknown"]) == (str(noise), 1000, 40)
        assert measured["num_unreadable"] == 1
        assert (tmp_path / "results" / "unknown_images.png").read_bytes().startswith(b"\x89PNG")
        rows = csv_rows(tmp_path / "results" / "unknown_images.csv")
        output = tmp_path / "out.csv"
        start("src/predict.py", f"run={model}", f"input={noise}", f"output={output}", "top_k=1", returncode=1)
        assert csv_rows(output) == rows
        assert measured["unknown_marked"] == np.mean([row["unlike_training"] == "true" for row in rows])
        found.append(measured)
        marks.append([row["unlike_training"] for row in rows])
    assert marks[0] == marks[1]
    for key in ("auroc", "fpr_at_95", "known_marked"):
        assert found[0][key] == pytest.approx(found[1][key], abs=2e-3)
    model = load_predictor(run, accelerator="cpu")
    known = model.unknown_detector.scores(model.predict(shapes.render_split("test")[0])[0])
    assert found[0]["known_marked"] == pytest.approx(np.mean(known < 0))
    unknown = np.array([image_score(model, Path(row["file"])) for row in rows])
    labels = np.repeat([1, 0], [len(known), len(unknown)])
    assert found[0]["auroc"] == pytest.approx(roc_auc_score(labels, np.concatenate([known, unknown])), abs=1e-6)


@pytest.mark.slow
def test_the_directory_of_the_results_has_the_name_of_the_data_and_val_can_be_evaluated(
    run: Path, noise: Path, start: Callable
):
    start("src/eval.py", f"run={run}", "split=val", f"ood={noise}/a/*.png")
    (folder,) = (run / "eval").glob("val-ood_*")
    assert re.fullmatch(r"val-ood__\.png-[0-9a-f]{8}", folder.name)
    measured = json.loads((folder / "metrics.json").read_text())["unknown_images"]
    assert (measured["num_unknown"], measured["num_unreadable"]) == (20, 0)
    rows = csv_rows(folder / "unknown_images.csv")
    assert [row["file"] for row in rows] == sorted(str(file) for file in (noise / "a").iterdir())


@pytest.mark.slow
def test_a_run_without_a_detector_is_one_line_until_it_is_fitted(
    run: Path, noise: Path, start: Callable, tmp_path: Path
):
    old = shutil.copytree(run, tmp_path / "train" / "old")
    file = old / "checkpoints" / "calibration.json"
    entries = json.loads(file.read_text())
    entries["best.ckpt"].pop("unknown_detector")
    file.write_text(json.dumps(entries))
    remedy, before = "eval.py run=RUN calibrate=fit", {*old.rglob("*")}
    printed = start("src/eval.py", f"run={old}", f"ood={noise}", returncode=2)
    (line,) = [line for line in printed.splitlines() if "ood=" in line]
    assert f"ood={noise}: unknown images are not marked" in line
    assert remedy in line
    assert {*old.rglob("*")} == before  # no empty directory for results
    image = noise / "a" / "0.png"
    printed = start("src/predict.py", f"run={old}", f"input={image}", f"output={tmp_path / 'out.csv'}")
    assert remedy in printed
    assert "unlike_training" not in csv_rows(tmp_path / "out.csv")[0]
    assert "unlike_training" not in json.loads((tmp_path / "out.json").read_text())["predictions"][0]
    start("src/eval.py", f"run={old}", f"ood={noise}", "calibrate=fit")
    fitted = json.loads(file.read_text())["best.ckpt"]["unknown_detector"]
    assert fitted["num_images"] == 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [("missing", "matches nothing"), ("empty", "has no image"), ("empty.txt", "is an empty list")],
)
def test_data_without_images_is_one_line_without_torch(
    run: Path, without_torch: Callable, tmp_path: Path, name: str, text: str
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    done = without_torch("src/eval.py", f"run={run}", f"ood={tmp_path / name}", f"paths.log_dir={tmp_path}")
    assert done.returncode == 2
    assert f"ood={tmp_path / name} {text}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_figure_which_a_model_card_publishes_names_no_path(
    run: Path, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from imago.analysis import plots

    titles, draw = [], plots.plot_scores
    monkeypatch.setattr(plots, "plot_scores", lambda *arguments: titles.append(arguments[2]) or draw(*arguments))
    predictor = load_predictor(run / "export" / "model.onnx")
    result = SimpleNamespace(logits=np.eye(10, dtype=np.float32)[:3], groups=None)
    for text in (f"{noise}/a/", f"{noise}/a/../a"):
        images = sorted((noise / "a").iterdir())[:2]
        evaluate_unknown(predictor, text, images, result, tmp_path)  # type: ignore[arg-type]
    assert titles == ["3 known images, 2 images of a"] * 2


class Files:
    """Splits whose images are files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def items(self) -> list:
        return [("train", self)]


@pytest.mark.slow
def test_images_of_the_evaluated_dataset_and_unreadable_ones_are_refused(run: Path, noise: Path, tmp_path: Path):
    predictor = load_predictor(run / "export" / "model.onnx")
    images = sorted((noise / "a").iterdir())
    (tmp_path / "link").symlink_to(noise / "a")
    linked = [tmp_path / "link" / file.name for file in images[:3]]
    with pytest.raises(ConfigError, match=r"^ood=x has 3 images of the evaluated dataset, whose classes are known; "):
        check_unknown(predictor, "x", images, Files(linked))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^ood=x: none of 1 image can be read"):
        evaluate_unknown(predictor, "x", [noise / "bad.png"], None, tmp_path)  # type: ignore[arg-type]


def test_names_of_directories_are_safe_and_differ_by_path(tmp_path: Path):
    names = [ood_name(str(tmp_path / folder / "my photos")) for folder in "ab"]
    assert names[0] != names[1]
    assert all(re.fullmatch(r"ood_my_photos-[0-9a-f]{8}", name) for name in names)
    assert ood_name("a/../b") == ood_name("b/") == ood_name(str(Path("b").absolute()))
    assert len(ood_name("x" * 300)) < 100
