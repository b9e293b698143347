"""`predict.py`: any picture under any name, one table, and no bad picture keeps the others from their answer."""

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data import shapes
from imago.errors import ConfigError, DataError
from imago.images import Preprocess, read_image, resize_and_crop
from imago.run.load import load_predictor
from imago.run.predict import Prediction, find_pictures, predict_pictures, write_predictions

NASTY = (
    *("IMG (1).jpg", "a,b=c.png", "[x] {y}.png", "~tilde.png", "été ünï.webp", 'quote\'s "q".png', "100%.PNG"),
    *("a#b $HOME.png", "ends\\.gif", "*.bmp", "line\nbreak.tiff", " "),
)


NO_TORCH = "sys.modules['torch'] = None; sys.modules['lightning'] = None; "


def as_code(prelude: str, arguments: list[str]) -> str:
    """What `python -c` takes to run `src/predict.py` after a prelude."""
    start = f"import sys, runpy; {prelude}sys.path.insert(0, 'src'); sys.argv = {['src/predict.py', *arguments]!r}; "
    return start + "runpy.run_path('src/predict.py', run_name='__main__')"


class Brightness:
    """A network that knows dark, grey and light, and remembers the sizes of its batches."""

    class_names = ("dark", "grey", "light")
    preprocess = Preprocess(size=8, resize=8, crop="squash", mean=(0.5,) * 3, std=(0.5,) * 3)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def logits(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (3, 8, 8)
        self.batches.append(len(images))
        level = images.mean(axis=(1, 2, 3))[:, None]
        return (-np.abs(level - np.array([0, 128, 255])) / 50).astype(np.float32)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = self.logits(images)
        return logits, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def write_picture(file: Path, level: int = 0, mode: str = "RGB") -> Path:
    """A picture of one brightness; a name without suffix gets a JPEG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (40, 30), (level,) * 3).convert(mode)
    picture.save(file, format=None if file.suffix else "JPEG")
    return file


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests look at what lies in the folder of the finished run."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("predicted") / "train" / "short")


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
def test_pictures_of_any_name_get_the_label_and_probabilities_of_the_network(run: Path, predict: Callable, tmp_path):
    images, _ = shapes.draw_split("test")
    files = [tmp_path / "pictures" / name for name in NASTY if Path(name).suffix]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(images[90 * number].transpose(1, 2, 0)).resize((50 + number, 40)).save(file)
    done = predict(f"run={run}", f"input={tmp_path / 'pictures'}", "top_k=10", "batch_size=4")
    [output] = (run / "predictions").iterdir()
    found = {row["file"]: row for row in rows(output)}
    assert set(found) == {str(file) for file in files}
    assert f"predictions for {len(files)} of {len(files)} pictures: " in done.stdout
    assert output.name in done.stdout
    model = load_predictor(run, accelerator="cpu")
    squares = [resize_and_crop(read_image(file), model.preprocess).transpose(2, 0, 1) for file in files]
    for file, logits in zip(files, model.logits(np.stack(squares)), strict=True):
        row = found[str(file)]
        assert row["class_1"] == model.class_names[logits.argmax()]
        shares = [float(row[f"probability_{place}"]) for place in range(1, 11)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == sorted(shares, reverse=True)
        assert {row[f"class_{place}"] for place in range(1, 11)} == set(model.class_names)
    assert not (tmp_path / "logs" / "train").exists()


@pytest.mark.slow
def test_a_truncated_jpeg_is_named_and_the_others_are_done(run: Path, predict: Callable, tmp_path: Path):
    folder = tmp_path / "pictures"
    for number in range(3):
        write_picture(folder / f"good {number}.jpg", 80 * number)
    content = (folder / "good 1.jpg").read_bytes()
    (folder / "bad, [1].jpg").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("no picture, and not asked for")
    output = tmp_path / "out, put.csv"
    done = predict(f"run={run}", f"input={folder}", f"output={output}", returncode=1)
    errors = done.stderr.strip().splitlines()
    assert errors[0].startswith(f"error: {folder / 'bad, [1].jpg'} is damaged: ")
    assert errors[1:] == ["error: 1 of 4 pictures could not be read; the others are done"]
    assert [Path(row["file"]).name for row in rows(output)] == [f"good {number}.jpg" for number in range(3)]


@pytest.mark.slow
def test_a_bad_picture_does_not_end_a_sweep(run: Path, predict: Callable, tmp_path: Path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    done = predict("-m", f"run={run}", f"input={tmp_path / 'bad.jpg'}", "top_k=1,2", returncode=2)
    assert "2 of 2 trials failed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IMG (1).jpg", "[1], ~é.png", "*.png"])
def test_one_picture_is_found_under_its_own_name_from_its_own_folder(
    run: Path, predict: Callable, tmp_path: Path, name: str
):
    write_picture(tmp_path / "there" / name)
    write_picture(tmp_path / "there" / "1.png")  # what "[1]*" and "*.png" would mean as patterns
    done = predict(f"run={run}", f"input={name}", "output=out.csv", "top_k=1", cwd=tmp_path / "there")
    assert [row["file"] for row in rows(tmp_path / "there" / "out.csv")] == [name]
    assert done.stdout.splitlines()[0] == f"{'picture':<{max(7, len(name))}}  class  probability".replace(
        "class ", f"{'class':<{len(rows(tmp_path / 'there' / 'out.csv')[0]['class_1'])}} "
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run=no/such run", "input=src"], "run=no/such run does not exist; give a run folder such as logs/latest"),
        (["run=README.md"], "input: has no value yet; type it as input=VALUE"),
        (["run=README.md", "input="], "input= names nothing; give a picture, a folder, or a pattern"),
        (["run=README.md", "input=no [such] file.jpg"], "input=no [such] file.jpg matches nothing; give a picture"),
        (["run=README.md", "input=configs"], "input=configs holds no picture (.bmp .gif"),
        (["run=README.md", "input=src", "top_k=0", "batch_size=2"], "top_k=0 must be 1 or more"),
        (["run=README.md", "input=src", "batch_size=null"], "batch_size=null must be 1 or more"),
        (["run=README.md", "input=src", "output=src"], "output=src is a folder; give a file, e.g. output=src/out.csv"),
        (["run=README.md", "input=${x}"], "a path cannot hold '${'"),
    ],
)
def test_a_mistake_is_one_line_without_loading_torch(command: Callable, arguments: list[str], text: str):
    done = command("-c", as_code(NO_TORCH, arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_an_exported_file_gives_the_same_labels_without_torch(run: Path, command: Callable, tmp_path: Path):
    images, _ = shapes.draw_split("val")
    for number, image in enumerate(images[::10]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    done = command("src/export.py", f"run={run}", f"paths.log_dir={tmp_path / 'logs'}")
    assert done.returncode == 0, done.stderr
    found = []
    for model, prelude in ((run, ""), (run / "export" / "model.onnx", NO_TORCH)):
        arguments = [f"run={model}", f"input={tmp_path}", f"output={tmp_path / 'out.csv'}"]
        done = command("-c", as_code(prelude, arguments))
        assert done.returncode == 0, done.stderr
        found.append(rows(tmp_path / "out.csv"))
    assert len(found[0]) == 100
    assert [row["class_1"] for row in found[0]] == [row["class_1"] for row in found[1]]
    shares = [[float(row["probability_1"]) for row in table] for table in found]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)


def test_help_is_this_commands_own(command: Callable):
    shown = command("src/predict.py", "--help").stdout
    assert "RUN/predictions/TIME.csv" in shown
    assert "train.py" not in shown


def names(found: Sequence[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


@pytest.mark.parametrize("name", NASTY)
def test_an_existing_file_is_that_file_whatever_its_name(tmp_path: Path, name: str):
    write_picture(tmp_path / name)
    write_picture(tmp_path / "x.bmp")
    assert find_pictures(str(tmp_path / name)) == [tmp_path / name]


def test_a_folder_is_searched_with_all_below_it_but_not_in_hidden_places(tmp_path: Path):
    for name in ("b.JPG", "a/c.png", "a/[d]/e.webp", ".hidden.png", ".cache/f.png", "a/.g/h.png", "readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert names(find_pictures(str(tmp_path)), tmp_path) == ["a/[d]/e.webp", "a/c.png", "b.JPG"]


def test_a_pattern_gives_pictures_and_what_lies_in_folders_each_once(tmp_path: Path):
    for name in ("x1.png", "x2.txt", "x3/y.png", "x3/z/y.png", "other.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_pictures(f"{tmp_path}/x*"), tmp_path) == ["x1.png", "x3/y.png", "x3/z/y.png"]
    assert names(find_pictures(f"{tmp_path}/**"), tmp_path) == ["other.png", "x1.png", "x3/y.png", "x3/z/y.png"]
    assert names(find_pictures(f"{tmp_path}/x[12].*"), tmp_path) == ["x1.png"]


@pytest.mark.parametrize(
    ("text", "reason"), [("a" * 5000, "matches nothing"), ("x\n[y].png", r"x\\n\[y\].png matches")]
)
def test_what_cannot_be_a_file_is_one_line(text: str, reason: str):
    with pytest.raises(ConfigError, match=reason) as caught:
        find_pictures(text)
    assert "\n" not in str(caught.value)


def test_pictures_go_through_in_batches_of_any_size_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture):
    modes = ("RGB", "L", "P", "RGBA", "CMYK", "1")
    files = [write_picture(tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}", 255, mode) for mode in modes]
    bad = tmp_path / "\x1b[31mbad\n.png"
    bad.write_bytes(b"")
    network = Brightness()
    found = list(predict_pictures(network, [files[0], bad, *files[1:]], batch_size=2, top_k=2))
    assert network.batches == [1, 2, 2, 1]
    assert [prediction.picture for prediction in found] == files
    assert {prediction.class_names for prediction in found} == {("light", "grey")}
    assert all(1 > p.probabilities[0] > p.probabilities[1] for p in found)
    [line] = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert r"\x1b[31mbad\n.png is empty (0 bytes)" in line


def test_a_network_that_gives_no_numbers_is_refused(tmp_path: Path):
    class Broken(Brightness):
        def logits(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 3), np.nan, np.float32)

    with pytest.raises(DataError, match="not finite"):
        list(predict_pictures(Broken(), [write_picture(tmp_path / "a.png")], batch_size=2, top_k=1))


def test_a_file_name_that_is_no_utf8_comes_back_as_its_own_bytes(tmp_path: Path):
    name = os.fsdecode(b"latin\xe9.png")
    write_predictions(tmp_path / "new" / "out.csv", [Prediction(Path(name), ("a",), (1.0,))], num_columns=1)
    assert (tmp_path / "new" / "out.csv").read_bytes() == b"file,class_1,probability_1\nlatin\xe9.png,a,1.000000\n"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"out.csv cannot be written: .+; name another file, output="):
        write_predictions(tmp_path / "file" / "out.csv", [], num_columns=1)
