"""Suspicious labels come from networks not trained on the image, and end in a list, a page and a split file."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run
from short_runs import FLOAT, csv_rows, summary, train

from imago.data.dataset import LabeledArray
from imago.dataset_check import labels
from imago.dataset_check.labels import OutOfFold, find_fold_runs, predict_out_of_fold, write_label_issues
from imago.errors import ConfigError, DataError

HAS_CLEANLAB = importlib.util.find_spec("cleanlab") is not None
needs_cleanlab = pytest.mark.skipif(not HAS_CLEANLAB, reason="needs the extra labels (cleanlab)")


def arrays(given: list[int], split: str) -> LabeledArray:
    images = np.arange(len(given), dtype=np.uint8).repeat(48).reshape(-1, 3, 4, 4)
    return LabeledArray(images, np.array(given), tuple(f"{split}/{index}" for index in range(len(given))))


def noisy(num_images: int = 900, share: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels of three classes, some of which are flipped, where, and probabilities of the true classes."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, num_images)
    is_flipped = rng.random(num_images) < share
    given = np.where(is_flipped, (true + rng.integers(1, 3, num_images)) % 3, true)
    logits = 3 * np.eye(3)[true] + rng.normal(0, 1, (num_images, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return given, is_flipped, probabilities


@needs_cleanlab
def test_flipped_labels_are_found():
    given, is_flipped, probabilities = noisy()
    issues = labels.rank_label_issues(given, probabilities)
    assert is_flipped[issues].mean() > 0.8
    assert is_flipped[issues].sum() > 0.8 * is_flipped.sum()
    assert is_flipped[issues[:20]].all()


def test_the_list_the_page_and_the_split_file_have_the_suspicious_images(tmp_path: Path):
    probabilities = np.array([[0.9, 0.1], [0.01, 0.99], [0.6, 0.4], *[[0.1, 0.9]] * 9])
    found = OutOfFold(("ant", "<bee>"), arrays([0, 0, *[1] * 10], "train"), probabilities, arrays([1, 0], "test"))
    write_label_issues(tmp_path, found, np.array([1, 2]))
    rows = csv_rows(tmp_path / "label_issues.csv")
    wrong = [float(row.pop("probability_wrong")) for row in rows]
    assert [tuple(row.values()) for row in rows] == [
        ("train/1", "ant", "<bee>", "0.010000", "0.990000", "1"),
        ("train/2", "<bee>", "ant", "0.400000", "0.600000", "2"),
    ]
    assert wrong[0] > 0.5 > wrong[1]  # only the first is left out
    kept = {row["path"]: (row["label"], row["split"]) for row in csv_rows(tmp_path / "split_without_label_issues.csv")}
    assert kept == {
        **{"train/0": ("ant", "train"), **{f"train/{index}": ("<bee>", "train") for index in range(2, 12)}},
        **{"test/0": ("<bee>", "test"), "test/1": ("ant", "test")},
    }
    page = (tmp_path / "label_issues.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "1. given: ant</div>" in page
    assert "suggested: <strong>&lt;bee&gt;</strong> 99.0 %" in page


def test_the_probability_of_a_wrong_label_is_its_share_of_labels_drawn_at_random():
    rng, num_images = np.random.default_rng(0), 20_000
    probabilities = rng.dirichlet((0.2, 0.2, 0.2), num_images)
    labels = (probabilities.cumsum(axis=1) < rng.random((num_images, 1))).sum(axis=1).clip(max=2)
    is_random = rng.random(num_images) < 0.1
    labels[is_random] = rng.integers(0, 3, is_random.sum())
    samples = LabeledArray(np.zeros((num_images, 3, 1, 1), np.uint8), labels, tuple(map(str, range(num_images))))
    wrong = OutOfFold(("a", "b", "c"), samples, probabilities, samples).probability_wrong
    assert wrong.mean() == pytest.approx(0.1, abs=0.01)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1)):
        is_between = (low <= wrong) & (wrong < high)
        assert is_random[is_between].mean() == pytest.approx(wrong[is_between].mean(), abs=0.03)


def fold_runs(sweep: Path, *folds: int | None, num_folds: int = 3) -> Path:
    for number, fold in enumerate(folds):
        make_run(sweep / str(number), config={"data": {"_target_": "x", "fold": fold, "num_folds": num_folds}})
    return sweep


def test_a_cross_validation_needs_a_finished_run_of_each_fold(tmp_path: Path):
    assert len(find_fold_runs(fold_runs(tmp_path / "a", 0, 1, 2, 2))) == 4
    with pytest.raises(DataError, match=r"labels=.*b: fold 1 of 3 has no finished run; sweep_name=NAME resume=auto"):
        find_fold_runs(fold_runs(tmp_path / "b", 0, 2))
    with pytest.raises(ConfigError, match="c has no finished run of a cross-validation; .* -m 'data.fold=range"):
        find_fold_runs(fold_runs(tmp_path / "c", None))
    with pytest.raises(ConfigError, match="is not a directory; type that of a sweep over data.fold"):
        find_fold_runs(tmp_path / "d")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a short training."""
    logs = tmp_path_factory.mktemp("folds")
    short = ("data=shapes", "trainer.max_epochs=1", "trainer.limit_train_batches=8", "model.hidden_features=16", FLOAT)
    train(logs, "-m", "data.fold=range(2)", "data.num_folds=2", *short, "sweep_name=x", warm_children=True)
    return logs / "sweeps" / "x"


@pytest.mark.slow
def test_every_image_is_predicted_by_the_network_that_was_not_trained_on_it(sweep: Path, tmp_path: Path):
    runs = [Path(record.run_dir) for record in find_fold_runs(sweep)]
    found = predict_out_of_fold(runs)
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(found.samples)))
    assert len(set(found.samples.names)) == len(found.samples)
    is_right = found.probabilities.argmax(axis=1) == found.samples.labels
    sizes = [summary(run)["val"]["num_images"] for run in runs]
    right = [round(summary(run)["val"]["acc"] * size) for run, size in zip(runs, sizes, strict=True)]
    assert (is_right.sum(), len(is_right)) == (sum(right), sum(sizes))
    again = predict_out_of_fold([*runs, runs[0]])  # two runs of a fold are averaged
    assert np.allclose(again.probabilities, found.probabilities)
    changed = shutil.copytree(runs[0], tmp_path / "changed")
    (changed / "provenance.json").write_text('{"data": "other"}')
    with pytest.raises(DataError, match="changed: the dataset has changed since training, so its val images may"):
        predict_out_of_fold([changed])


@pytest.mark.slow
def test_the_command_writes_its_results_and_prints_the_command_that_trains_without_them(
    sweep: Path, command: Callable, tmp_path: Path
):
    done = command("src/check.py", f"labels={sweep}", "run_name=one", f"paths.log_dir={tmp_path}")
    if not HAS_CLEANLAB:
        assert done.returncode == 2
        assert "needs the package cleanlab, an extra of this project: pip install -e '.[labels]'" in done.stderr
        pytest.skip("needs the extra labels (cleanlab)")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "check" / "one"
    assert {file.name for file in folder.iterdir()} == {
        *("label_issues.csv", "label_issues.html", "split_without_label_issues.csv")
    }
    assert " labels are probably wrong, " in done.stdout
    [printed] = [line for line in done.stdout.splitlines() if "train.py" in line]
    assert "data=shapes" in printed
    assert "data.fold" not in printed
    assert printed.endswith("split_without_label_issues.csv")
