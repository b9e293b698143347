"""Corrupted images are evaluated the same by a run and its ONNX file, and published sets are read where they lie."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.special import beta as beta_function
from short_runs import csv_rows

from imago.analysis.page import read_or_none
from imago.data.cifar10 import CLASS_NAMES
from imago.data.dataset import LabeledArray, Splits
from imago.errors import DataError
from imago.images import Preprocess
from imago.inference.corruptions import CORRUPTIONS, corrupt
from imago.inference.robustness import (
    _summarize,
    measure_robustness,
    read_published,
    robustness_problems,
    write_robustness,
)
from imago.statistics.calibration import reliability
from imago.statistics.intervals import wilson_interval
from imago.statistics.metrics import LabeledOutputs

SIZE = 16


class Bright:
    """Predicts by the brightness of the image: one class for each 26 values of the mean."""

    calibration_temperature = 1.0
    predicts_classes = True

    def __init__(self, class_names: tuple[str, ...] = CLASS_NAMES) -> None:
        self.class_names = class_names
        self.preprocess = Preprocess(SIZE, SIZE + 4, "center", (0.5,) * 3, (0.5,) * 3)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert images.shape[1:] == (3, SIZE, SIZE)
        logits = np.zeros((len(images), 10), np.float32)
        logits[np.arange(len(images)), (images.mean(axis=(1, 2, 3)) // 26).astype(int)] = 2
        return logits, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def plain_images(labels: np.ndarray) -> np.ndarray:
    """Images uint8 (N, 20, 20, 3) that `Bright` classifies correctly."""
    return np.broadcast_to((26 * labels + 13).astype(np.uint8)[:, None, None, None], (len(labels), 20, 20, 3)).copy()


def make_data(labels: np.ndarray) -> tuple[SimpleNamespace, LabeledOutputs]:
    names = tuple(f"test/{index:05d}" for index in range(len(labels)))
    samples = LabeledArray(plain_images(labels).transpose(0, 3, 1, 2), labels, names)
    plan = SimpleNamespace(split_seed=3)
    data = SimpleNamespace(splits=Splits(CLASS_NAMES, samples, samples, samples), class_names=CLASS_NAMES)
    data.split_plan, data.batch_size = plan, 7
    logits = np.eye(10, dtype=np.float32)[labels]
    logits[0] = np.roll(logits[0], 1)  # the network is wrong on the first image without corruption
    return data, LabeledOutputs(CLASS_NAMES, labels, logits, np.full(len(labels), 0.5))


def measure(corrupt: object, labels: np.ndarray, num_samples: int = 1000) -> dict:
    data, result = make_data(labels)
    return measure_robustness((corrupt, num_samples), Bright(), data, "test", result)


LABELS = np.arange(40) % 10


def test_scores_are_those_of_the_corrupted_pixels_in_any_batches():
    found = measure(["brightness", "gaussian_noise"], LABELS)
    assert list(found["corruptions"]) == ["brightness", "gaussian_noise"]
    pixels = plain_images(LABELS).transpose(0, 3, 1, 2)[:, :, 2:18, 2:18]
    for severity in range(1, 6):  # brightness needs no key, so it is repeated here in one batch
        brighter = corrupt(pixels, "brightness", severity, np.zeros(40, np.uint64))
        logits, probabilities = Bright().predict(brighter)
        is_correct = logits.argmax(axis=1) == LABELS
        scores = {name: values[severity - 1] for name, values in found["corruptions"]["brightness"].items()}
        assert scores["acc"] == is_correct.mean()
        assert scores["acc_interval"] == wilson_interval(int(is_correct.sum()), 40)
        assert scores["calibration_error"] == reliability(probabilities.max(axis=1), is_correct).ece
    assert found["clean_acc"] == 39 / 40
    all_shares = [acc for scores in found["corruptions"].values() for acc in scores["acc"]]
    assert found["mean_corrupted_acc"] == pytest.approx(np.mean(all_shares))
    assert found["difference"] == pytest.approx(np.mean(all_shares) - 39 / 40)
    low, high = found["mean_corrupted_acc_interval"]
    assert low < found["mean_corrupted_acc"] < high


def test_a_part_has_the_classes_in_their_shares_and_the_accuracy_of_the_whole():
    found = measure("brightness", LABELS, num_samples=20)
    assert (found["num_images"], found["num_all_images"]) == (20, 40)
    whole = measure("brightness", LABELS)
    assert found["corruptions"]["brightness"]["acc"] == whole["corruptions"]["brightness"]["acc"]  # equal by class


def test_the_interval_of_the_mean_covers_it_although_each_image_appears_many_times():
    generator, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(60):
        difficulty = generator.beta(2, 1, 300)  # of each image, the same in all corruptions; mean 2/3
        outputs = {("fog", s): [(generator.random(300) < difficulty, difficulty)] for s in range(1, 11)}
        low, high = _summarize(outputs, np.ones(300, bool), True, None)["mean_corrupted_acc_interval"]
        covered += low <= 2 / 3 <= high
        widths.append(high - low)
    assert covered >= 52
    low, high = wilson_interval(2000, 3000)  # as if the 3,000 were independent
    assert np.mean(widths) > 1.5 * (high - low)


def test_groups_widen_the_interval_of_the_mean():
    groups = np.repeat(np.arange(10), 30)
    is_correct = np.repeat(np.random.default_rng(0).random(10) < 0.6, 30)
    outputs = {("fog", 1): [(is_correct, np.full(300, 0.6))]}
    widths = []
    for given in (None, groups):
        found = _summarize(outputs, is_correct, True, given)
        widths.append(np.ptp(found["mean_corrupted_acc_interval"]))
        low, high = found["difference_interval"]  # of equal images the difference is 0 in each, but not surely in all
        assert -0.3 < low < 0 < high < 0.3
    assert widths[1] > 3 * widths[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "strength", "num_images", "num_groups"),
    [(2 / 3, 3, 20, 20), (0.95, 20, 50, 50), (0.99, 50, 50, 50), (2 / 3, 3, 100, 5), (2 / 3, 3, 200, 20)],
)
def test_the_intervals_of_few_easy_or_grouped_images_contain_the_true_mean(
    mean: float, strength: float, num_images: int, num_groups: int
):
    generator, covered = np.random.default_rng(0), np.zeros(2)
    numbers = np.repeat(np.arange(num_groups), num_images // num_groups)
    a, b = strength * mean, strength * (1 - mean)
    clean_mean = beta_function(a + 0.5, b) / beta_function(a, b)  # of the square root of a beta variable
    for _ in range(100):
        share = generator.beta(a, b, num_groups)[numbers]  # of each image, the same in all corruptions
        outputs = {("fog", s): [(generator.random(num_images) < share, share)] for s in range(1, 6)}
        clean = generator.random(num_images) < np.sqrt(share)
        found = _summarize(outputs, clean, True, numbers if num_groups < num_images else None)
        for row, (name, true) in enumerate({"mean_corrupted_acc": mean, "difference": mean - clean_mean}.items()):
            low, high = found[f"{name}_interval"]
            covered[row] += low <= true <= high
    assert (covered >= 88).all()


def test_intervals_have_a_width_if_every_image_is_right():
    outputs = {("fog", 1): [(np.ones(30, bool), np.ones(30))]}
    found = _summarize(outputs, np.ones(30, bool), True, None)
    low, high = found["mean_corrupted_acc_interval"]
    assert low == pytest.approx(wilson_interval(30, 30)[0], abs=0.03)
    assert high == 1
    assert found["difference_interval"][0] < -0.05


def write_cifar_c(folder: Path, names: tuple[str, ...] = ("fog", "snow")) -> Path:
    """CIFAR-10-C of 20 images: at severity s the class appears s - 1 higher for the first s images."""
    folder.mkdir()
    labels = np.arange(20) % 9
    for name in names:
        parts = [plain_images(labels + (np.arange(20) < severity - 1)) for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return folder


def test_cifar_10_c_is_read_by_severity_and_compared_with_the_same_clean_images(tmp_path: Path):
    found = measure(str(write_cifar_c(tmp_path / "c")), np.arange(20) % 9)
    assert found["corruptions"]["snow"]["acc"] == [1, 19 / 20, 18 / 20, 17 / 20, 16 / 20]
    assert list(found["corruptions"]) == ["snow", "fog"]  # in the order of the paper
    assert found["clean_acc"] == 19 / 20
    assert found["difference"] == pytest.approx(18 / 20 - 19 / 20)
    assert "difference" not in measure(str(tmp_path / "c"), np.arange(20) % 8)  # other labels: other images


def test_cifar_10_1_is_read_as_one_set(tmp_path: Path):
    labels = np.arange(12) % 10
    np.save(tmp_path / "cifar10.1_v6_data.npy", plain_images(np.where(np.arange(12) < 3, 5, labels)))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)
    found = measure(str(tmp_path), LABELS)
    assert found["corruptions"]["cifar10.1_v6_data"]["acc"] == [9 / 12]
    assert "difference" not in found
    np.save(tmp_path / "cifar10.1_v4_data.npy", plain_images(labels[:11]))
    np.save(tmp_path / "cifar10.1_v4_labels.npy", labels[:11])
    assert measure(str(tmp_path), LABELS)["corruptions"] == found["corruptions"]  # the newest of two


def test_severities_that_a_published_set_lacks_are_no_others(tmp_path: Path, capsys):
    for name, severity, color in (("fog", 5, 0), ("snow", 2, 0), ("snow", 4, 3)):
        for label, class_name in ((0, "airplane"), (3, "cat")):
            folder = tmp_path / "c" / name / str(severity) / class_name
            folder.mkdir(parents=True)
            Image.fromarray(plain_images(np.array([label or color]))[0]).save(folder / "a.png")
    found = measure(str(tmp_path / "c"), LABELS)
    scores = {name: (values["severity"], values["acc"]) for name, values in found["corruptions"].items()}
    assert scores == {"fog": ([5], [1]), "snow": ([2, 4], [1, 0.5])}
    write_robustness(tmp_path, found)
    rows = [(row["corruption"], row["severity"], row["acc"]) for row in csv_rows(tmp_path / "robustness-c.csv")]
    assert rows == [("fog", "5", "1.0"), ("snow", "2", "1.0"), ("snow", "4", "0.5")]
    lines = {line[:4]: line for line in capsys.readouterr().out.splitlines()}
    ends = [lines["accu"].index(f" {severity} ") + 2 for severity in (2, 4, 5)]  # numbers are aligned right
    assert [lines["snow"][end - 5 : end].strip() for end in ends] == ["100.0", "50.0", ""]
    assert [lines["fog "][end - 5 : end].strip() for end in ends] == ["", "", "100.0"]


def test_a_part_of_the_corruptions_or_of_the_images_never_replaces_the_results_of_all(tmp_path: Path):
    (tmp_path / "c").mkdir()
    labels, contents = np.arange(1005) % 10, {}
    for typed, num_samples in ((["fog"], 1000), ("fog", 20), (str(write_cifar_c(tmp_path / "c d")), 1000)):
        found = measure(typed, labels, num_samples)
        contents[write_robustness(tmp_path, found)[0]] = found
    contents[write_robustness(tmp_path, found | {"corrupt": "all", "num_images": 1000, "num_all_images": 1005})[0]] = 0
    contents[write_robustness(tmp_path, found | {"corrupt": "all", "num_images": 999, "num_all_images": 1005})[0]] = 0
    parts = ["-fog", "-fog-20_images", "-c_d", "", "-999_images"]
    assert list(contents) == [f"robustness{part}.json" for part in parts]
    for name, expected in list(contents.items())[:3]:
        assert json.loads((tmp_path / name).read_text()) == json.loads(json.dumps(expected))
    assert len(list(tmp_path.glob("robustness*"))) == 15


def test_a_name_is_a_corruption_though_a_directory_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = measure("fog", LABELS)
    (tmp_path / "fog").mkdir()
    monkeypatch.chdir(tmp_path)
    assert measure("fog", LABELS) == expected


def test_imagenet_c_is_read_in_one_folder_or_in_one_for_each_kind(tmp_path: Path):
    for kind in ("", "noise"):
        root = tmp_path / f"c{kind}"
        for severity in range(1, 6):
            for label, name in ((0, "airplane"), (3, "cat")):
                folder = root / kind / "gaussian_noise" / str(severity) / name
                folder.mkdir(parents=True)
                wrong = label + (severity == 4 and name == "cat")
                Image.fromarray(plain_images(np.array([wrong]))[0]).save(folder / "ILSVRC2012_val_1.JPEG")
        assert measure(str(root), LABELS)["corruptions"]["gaussian_noise"]["acc"] == [1, 1, 1, 0.5, 1]
    folder.rename(folder.with_name("n01440764"))
    (root / "noise/gaussian_noise/1/cat").rename(root / "noise/gaussian_noise/1/n01440764")
    with pytest.raises(DataError, match="classes that the network lacks: 'n01440764'"):
        measure(str(root), LABELS)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.npy", None, r"labels.npy cannot be read .*No such file.*; corrupt=DIR takes CIFAR-10-C"),
        ("labels.npy", b"\x93NUMPY", r"labels.npy cannot be read"),
        ("fog.npy", b"no array", r"fog.npy cannot be read"),
        ("fog.npy", np.array([{}], object), r"fog.npy cannot be read"),
        ("fog.npy", np.zeros((100, 20, 20, 3)), r"fog.npy has float64 .*, expected uint8 \(100, height, width, 3\)"),
        ("fog.npy", np.zeros((99, 20, 20, 3), np.uint8), r"fog.npy has uint8 \(99, 20, 20, 3\), expected uint8 \(100"),
        ("fog.npy", np.zeros((100, 3, 20, 20), np.uint8), r"fog.npy has uint8 \(100, 3, 20, 20\)"),
        ("labels.npy", np.arange(100) % 7, r"labels.npy has int64 \(100,\), expected labels from 0 to 9, 5 times"),
        ("labels.npy", np.full(100, 10), r"labels.npy has int64"),
        ("labels.npy", np.zeros(0, int), r"labels.npy has int64 \(0,\)"),
        ("labels.npy", np.zeros(100), r"labels.npy has float64"),
        ("labels.npy", np.full(100, np.nan), r"labels.npy has float64"),
        ("labels.npy", np.full(100, "cat"), r"labels.npy has <U3"),
        ("labels.npy", np.zeros(100, "V4"), r"labels.npy has \|V4"),
        ("fog.npy", np.zeros((100, 0, 0, 3), np.uint8), r"fog.npy has uint8 \(100, 0, 0, 3\)"),
    ],
)
def test_a_damaged_set_is_one_line(tmp_path: Path, file: str, content: object, message: str):
    path = write_cifar_c(tmp_path / "c") / file
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=message) as error:
        read_published(tmp_path / "c")
    assert "\n" not in str(error.value)


def test_any_damaged_bytes_of_a_header_are_one_line(tmp_path: Path):
    file, random, notes = write_cifar_c(tmp_path / "c") / "labels.npy", np.random.default_rng(0), []
    content = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(150):
        damaged = content.copy()
        damaged[random.integers(0, 128, 2)] = random.integers(0, 256, 2)
        file.write_bytes(damaged.tobytes())
        read_or_none(notes, read_published, tmp_path / "c")  # which lets no other error than a DataError pass
    assert len(notes) > 100
    assert not any("\n" in note for note in notes)


def test_a_truncated_array_and_a_directory_without_a_set_are_one_line(tmp_path: Path):
    file = write_cifar_c(tmp_path / "c") / "fog.npy"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"fog\.npy cannot be read"):
        read_published(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="takes CIFAR-10-C, CIFAR-10.1 or ImageNet-C as published"):
        read_published(tmp_path / "empty")
    np.save(tmp_path / "empty" / "labels.npy", np.zeros(10, int))
    with pytest.raises(DataError, match="and arrays of images beside it"):
        read_published(tmp_path / "empty")


def test_classes_that_the_network_lacks_are_one_line(tmp_path: Path):
    data, result = make_data(LABELS)
    with pytest.raises(DataError, match="the dataset has classes that the network lacks: 'airplane'"):
        measure_robustness((str(write_cifar_c(tmp_path / "c")), 10), Bright(tuple("abcdefghij")), data, "test", result)


def test_settings_that_cannot_work_are_named(tmp_path: Path):
    assert list(robustness_problems(None, 1000)) == []
    for num_samples, text in ((1, "1"), (0, "0"), (None, "null")):
        (line,) = robustness_problems(None, num_samples)
        assert line == f"corrupt_samples={text} is a setting of corrupt=; leave it out."
    assert list(robustness_problems("all", 1)) == []
    assert list(robustness_problems(["fog", "snow"], 1)) == []
    assert list(robustness_problems(str(tmp_path), 1)) == []
    (line,) = robustness_problems(["fog", "rain"], 1)
    assert line.startswith("corrupt=rain is neither all, a directory, nor one of gaussian_noise, ")
    assert all(name in line for name in CORRUPTIONS)
    for typed in ("", [], [""], ["all"], 5, True):
        (line,) = robustness_problems(typed, 1)
        assert "is neither all, a directory, nor one of" in line
    (line,) = robustness_problems("all", 0)
    assert line == "corrupt_samples=0 must be 1 or more, or null for all images."


@pytest.mark.slow
def test_a_run_and_its_onnx_file_agree_and_every_file_has_the_same_numbers(
    exported_run: Path, command: Callable, tmp_path: Path
):
    run = shutil.copytree(exported_run, tmp_path / "train" / "short")
    contents = []
    for typed in (run, run / "export" / "model.onnx"):
        folder = tmp_path / f"results{len(contents)}"
        arguments = (f"run={typed}", "corrupt=[fog,jpeg_compression]", "corrupt_samples=60", f"output={folder}")
        done = command("src/eval.py", *arguments, f"paths.log_dir={tmp_path}")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        contents.append(json.loads((folder / "robustness-fog+jpeg_compression-60_images.json").read_text()))
        found = contents[-1]
        for row in csv_rows(folder / "robustness-fog+jpeg_compression-60_images.csv"):
            scores = found["corruptions"][row["corruption"]]
            index = int(row["severity"]) - 1
            assert float(row["acc"]) == scores["acc"][index]
            assert [float(row["low"]), float(row["high"])] == scores["acc_interval"][index]
            assert float(row["calibration_error"]) == scores["calibration_error"][index]
        assert Image.open(folder / "robustness-fog+jpeg_compression-60_images.png").width > 1000
        assert re.search(r"corrupted images: 60 of [\d,]+ images, the same in each corruption", done.stdout)
        assert f"mean_corrupted_acc: {found['mean_corrupted_acc']:.2%}" in done.stdout
        (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("fog ")]
        assert row[1:6] == [f"{100 * acc:.1f}" for acc in found["corruptions"]["fog"]["acc"]]
    assert contents[0]["corruptions"]["fog"]["acc"] == contents[1]["corruptions"]["fog"]["acc"]
    assert contents[0]["model_sha256"] != contents[1]["model_sha256"]
    done = command("src/eval.py", f"run={run}", "corrupt=rain", "corrupt_samples=0", f"paths.log_dir={tmp_path}")
    assert done.returncode == 2
    assert "corrupt=rain is neither" in done.stderr
    assert "corrupt_samples=0 must be" in done.stderr
