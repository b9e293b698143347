"""`predict.py` predicts any image with any name; an unreadable image does not stop the others."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from short_runs import csv_rows

from imago.data import shapes
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, read_image, resize_and_crop
from imago.inference.find_images import find_images
from imago.inference.load import load_predictor
from imago.inference.predict import _check_output, predict_images
from imago.inference.predict import predict as predict_command

NAMES = ("IMG (1).jpg", "a,b=c.png", "[x] {y}.png", "été ünï.webp", "a#b $HOME.png", "line\nbreak.tiff")


class Brightness:
    """A network for dark, gray and light images that records the sizes of its batches."""

    class_names = ("dark", "gray", "light")
    preprocess = Preprocess(size=8, resize=8, crop="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    calibration_temperature = 1.0
    prediction_sets = None
    unknown_detector = None

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (3, 8, 8)
        self.batches.append(len(images))
        level = images.mean(axis=(1, 2, 3))[:, None]
        logits = (-np.abs(level - np.array([0, 128, 255])) / 50).astype(np.float32)
        return logits, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def write_image(file: Path, level: int = 0, mode: str = "RGB") -> Path:
    """An image of one brightness; a name without suffix gets a JPEG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sample = Image.new("RGB", (40, 30), (level,) * 3).convert(mode)
    sample.save(file, format=None if file.suffix else "JPEG")
    return file


@pytest.fixture(scope="module")
def run(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests check the directory contents."""
    return shutil.copytree(exported_run, tmp_path_factory.mktemp("predicted") / "train" / "short")


@pytest.fixture
def predict(command: Callable, tmp_path: Path) -> Callable:
    """Run `python src/predict.py`."""

    def start(*arguments: str, returncode: int = 0, cwd: Path | None = None):
        entry = str(Path("src/predict.py").resolve())
        done = command(entry, *arguments, f"paths.log_dir={tmp_path / 'logs'}", cwd=cwd or Path.cwd())
        assert done.returncode == returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return start


@pytest.mark.slow
def test_images_of_any_name_get_the_label_and_probabilities_of_the_network(run: Path, predict: Callable, tmp_path):
    images, _ = shapes.render_split("test")
    files = [tmp_path / "images" / name for name in NAMES]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(images[90 * number].transpose(1, 2, 0)).resize((50 + number, 40)).save(file)
    done = predict(f"run={run}", f"input={tmp_path / 'images'}", "top_k=10", "batch_size=4")
    [output] = (run / "predictions").glob("*.csv")
    found = {row["file"]: row for row in csv_rows(output)}
    assert set(found) == {str(file) for file in files}
    assert f"predictions for {len(files)} of {len(files)} images: " in done.stdout
    assert output.name in done.stdout
    model = load_predictor(run, accelerator="cpu")
    squares = [resize_and_crop(read_image(file), model.preprocess).transpose(2, 0, 1) for file in files]
    for file, logits in zip(files, model.predict(np.stack(squares))[0], strict=True):
        row = found[str(file)]
        assert row["class_1"] == model.class_names[logits.argmax()]
        shares = [float(row[f"probability_{rank}"]) for rank in range(1, 11)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == sorted(shares, reverse=True)
        assert {row[f"class_{rank}"] for rank in range(1, 11)} == set(model.class_names)
    assert not (tmp_path / "logs" / "train").exists()


@pytest.mark.slow
def test_a_truncated_jpeg_is_named_and_the_others_are_done(run: Path, predict: Callable, tmp_path: Path):
    folder = tmp_path / "images"
    for number in range(3):
        write_image(folder / f"good {number}.jpg", 80 * number)
    content = (folder / "good 1.jpg").read_bytes()
    (folder / "bad, [1].jpg").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("no image, and not asked for")
    output = tmp_path / "out, put.csv"
    done = predict(f"run={run}", f"input={folder}", f"output={output}", returncode=1)
    errors = done.stderr.strip().splitlines()
    assert errors[0].startswith(f"error: {folder / 'bad, [1].jpg'} is damaged: ")
    assert errors[1:] == ["error: 1 of 4 images could not be read; the others are done"]
    assert [Path(row["file"]).name for row in csv_rows(output)] == [f"good {number}.jpg" for number in range(3)]
    assert f"left out 1 file: {folder / 'notes.txt'} (not an image)" in done.stdout
    left_out = [{"file": str(folder / "notes.txt"), "reason": "not an image"}]
    assert json.loads(output.with_suffix(".json").read_text())["left_out"] == left_out


@pytest.mark.slow
def test_a_bad_image_does_not_end_a_sweep(run: Path, predict: Callable, tmp_path: Path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    done = predict("-m", f"run={run}", f"input={tmp_path / 'bad.jpg'}", "top_k=1,2", returncode=2)
    assert "2 of 2 trials failed" in done.stderr


@pytest.mark.slow
def test_one_image_is_found_under_its_own_name_from_its_own_folder(run: Path, predict: Callable, tmp_path: Path):
    name = "[1], ~é*.png"
    write_image(tmp_path / "there" / name)
    write_image(tmp_path / "there" / "1, ~é.png")  # what the name would mean as a pattern
    predict(f"run={run}", f"input={name}", "output=out.csv", "top_k=1", cwd=tmp_path / "there")
    assert [row["file"] for row in csv_rows(tmp_path / "there" / "out.csv")] == [name]


@pytest.fixture(scope="module")
def settings(compose: Callable) -> DictConfig:
    return compose("run=README.md", "input=src", config_name="predict")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threads": 0}, "threads=0 must be 1 or more, or auto"),
        ({"threads": "all"}, "threads=all must be 1 or more, or auto"),
        ({"run": "no/such run"}, "run=no/such run does not exist; type a run directory such as logs/latest"),
        ({"input": ""}, "input= is empty; type an image, a folder, or a pattern"),
        ({"input": "no [such] file.jpg"}, "input=no [such] file.jpg matches nothing; type an image"),
        ({"input": "configs"}, "input=configs has no image (.avif .bmp .gif"),
        ({"top_k": 0, "batch_size": 2}, "top_k=0 must be 1 or more"),
        ({"batch_size": None}, "batch_size=null must be 1 or more"),
        ({"output": "src"}, "output=src is a directory; type a file, e.g. output=src/out.csv"),
        ({"threshold": 1.5}, "threshold=1.5 must be in 0 .. 1"),
        ({"output": "a.json"}, "output=a.json is the CSV file; the JSON file"),
        ({"run": "model.onnx", "explain": True}, "explain=true needs a checkpoint: run=model.onnx"),
    ],
)
def test_an_invalid_setting_is_one_line(settings: DictConfig, changes: dict, text: str):
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        predict_command(OmegaConf.merge(settings, changes))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_exported_file_gives_the_same_labels_without_torch(
    run: Path, predict: Callable, without_torch: Callable, tmp_path: Path
):
    images, _ = shapes.render_split("val")
    for number, image in enumerate(images[::10]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    model, folder = run / "export" / "model.onnx", f"input={tmp_path}"
    predict(f"run={run}", folder, f"output={tmp_path / 'torch.csv'}")
    done = without_torch("src/predict.py", f"run={model}", folder, f"output={tmp_path / 'onnx.csv'}")
    assert done.returncode == 0, done.stderr
    found = [csv_rows(tmp_path / "torch.csv"), csv_rows(tmp_path / "onnx.csv")]
    assert len(found[0]) == 100
    assert [row["class_1"] for row in found[0]] == [row["class_1"] for row in found[1]]
    shares = [[float(row["probability_1"]) for row in table] for table in found]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)


def test_images_go_through_in_batches_of_any_size_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture):
    modes = ("RGB", "L", "P", "RGBA", "CMYK", "1")
    files = [write_image(tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}", 255, mode) for mode in modes]
    bad = tmp_path / "\x1b[31mbad\n.png"
    bad.write_bytes(b"")
    network = Brightness()
    predictions, bad_images = predict_images(network, [files[0], bad, *files[1:]], batch_size=2, top_k=2)
    assert network.batches == [1, 2, 2, 1]
    assert [prediction.image for prediction in predictions] == files
    assert bad_images == [(bad, f"{bad} is empty (0 bytes); delete it or copy it again.")]
    for (first, first_share), (second, second_share) in (prediction.best_classes for prediction in predictions):
        assert (first, second) == ("light", "gray")
        assert 1 > first_share > second_share
    [line] = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert r"\x1b[31mbad\n.png is empty (0 bytes)" in line


def test_the_largest_image_is_a_setting(tmp_path: Path):
    image = write_image(tmp_path / "a.png")  # 1,200 pixels
    assert len(predict_images(Brightness(), [image], 1, 1, max_pixels=1200)[0]) == 1
    assert "more than 1,199 pixels" in predict_images(Brightness(), [image], 1, 1, max_pixels=1199)[1][0][1]


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path):
    class Broken(Brightness):
        def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return (np.full((len(images), 3), np.nan, np.float32),) * 2

    with pytest.raises(DataError, match="contain NaN"):
        predict_images(Broken(), [write_image(tmp_path / "a.png")], batch_size=2, top_k=1)


def test_an_image_below_the_threshold_gets_no_answer(tmp_path: Path):
    files = [write_image(tmp_path / f"{level}.png", level) for level in (0, 64, 255)]
    plain, _ = predict_images(Brightness(), files, batch_size=8, top_k=2)
    shares = [prediction.best_classes[0][1] for prediction in plain]
    assert shares[1] < 0.7 < min(shares[0], shares[2])
    predictions, _ = predict_images(Brightness(), files, batch_size=8, top_k=2, threshold=0.7)
    assert [prediction.predicted for prediction in predictions] == ["dark", None, "light"]
    assert predictions[1].best_classes == plain[1].best_classes
    [sure], _ = predict_images(Brightness(), files[:1], batch_size=8, top_k=1, threshold=shares[0])
    assert sure.predicted == "dark"  # "less probable than": the threshold itself is enough


@pytest.mark.parametrize(
    ("source", "output", "explain"),
    [
        ("list.csv", "list.csv", False),
        ("list.csv", "images/a.png", False),
        ("images/a.png", "images/a.png", False),
        ("images", "images/a.png", False),
        ("images/p.json", "images/p.csv", False),
        ("out_explained", "out.csv", True),
    ],
)
def test_no_input_is_replaced_by_an_output(
    settings: DictConfig, tmp_path: Path, source: str, output: str, explain: bool
):
    (tmp_path / "list.csv").write_text("path\nimages/a.png\n")
    image = write_image(tmp_path / "images" / "a.png")
    shutil.copy(image, tmp_path / "images" / "p.json")
    write_image(tmp_path / "out_explained" / "00001_a.png")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    changes = {"input": str(tmp_path / source), "explain": explain}
    with pytest.raises(ConfigError, match=r"would replace an input in \S+; type another file\.$") as caught:
        predict_command(OmegaConf.merge(settings, changes, {"output": str(tmp_path / output)}))
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    free = OmegaConf.merge(settings, changes, {"output": str(tmp_path / "images" / "b.csv")})
    _check_output(free, Path(free.output), find_images(free.input))


@pytest.mark.slow
def test_a_list_a_threshold_and_overlays_from_the_command_line(run: Path, predict: Callable, tmp_path: Path):
    images, _ = shapes.render_split("test")
    files = []
    for number in range(3):
        files.append(tmp_path / f"ü {number}.png")
        Image.fromarray(images[300 * number].transpose(1, 2, 0)).save(files[-1])
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in [*files, tmp_path / "gone.png"]))
    arguments = [f"run={run}", f"input={tmp_path / 'list.txt'}", f"output={tmp_path / 'out.csv'}"]
    (tmp_path / "out_explained").mkdir()
    for name in ("00004_old.png", "00001_old.png", "mine.png", "0001_mine.png"):
        (tmp_path / "out_explained" / name).touch()
    done = predict(*arguments, "threshold=1.0", "explain=true", "top_k=2", returncode=1)
    assert "gone.png cannot be read: No such file or directory" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of 4 images could not be read; the others are done"
    assert "no predicted class for 3 of them: the best is less probable than threshold=1.0" in done.stdout
    assert "(below threshold)" in done.stdout
    assert [(row["file"], row["predicted"]) for row in csv_rows(tmp_path / "out.csv")] == [
        (str(file), "") for file in files
    ]
    saved = json.loads((tmp_path / "out.json").read_text())
    temperature = json.loads((run / "checkpoints" / "calibration.json").read_text())["best.ckpt"]
    assert saved["calibration_temperature"] == temperature["calibration_temperature"]
    assert [sample["file"] for sample in saved["bad"]] == [str(tmp_path / "gone.png")]
    found = {file.name: file for file in (tmp_path / "out_explained").iterdir()}
    assert {found.pop(name).stat().st_size for name in ("mine.png", "0001_mine.png")} == {0}  # not of this program
    overlays = sorted(found.values())
    assert [file.name for file in overlays] == [f"0000{n + 1}_ü {n}.png" for n in range(3)]
    assert all(Image.open(file).width > 400 for file in overlays)
