"""Find suspicious labels by the probabilities of networks that were not trained on the image: a cross-validation."""

import importlib.util
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.analysis.page import thumbnail_uri, write_page
from imago.errors import ConfigError, DataError
from imago.files import read_json, write_csv
from imago.inference.data_settings import read_data_settings
from imago.inference.load import load_predictor
from imago.inference.run_split import output_indices, run_split
from imago.instantiate import build
from imago.paths import command, short_path
from imago.runs.records import RunRecord, read_records
from imago.statistics.metrics import softmax
from imago.text import percent_text, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

_MAX_SHOWN, _MAX_LISTED = 100, 10  # images on the page, about 600 kB, and lines on the screen; our own choice
_NOT_REPEATED = ("data.fold", "data.split_file", "run_name", "sweep_name", "resume", "hydra")
_COLUMNS = ("file", "given", "suggested", "probability_given", "probability_suggested", "probability_wrong", "rank")


@dataclass(frozen=True)
class OutOfFold:
    """N images with the probabilities of networks that were not trained on them."""

    class_names: tuple[str, ...]  # K names
    samples: "Samples"  # the images of all folds
    probabilities: np.ndarray  # float64 (N, K); means over several runs of a fold
    test: "Samples"  # the test images, which are not examined

    def rows(self, issues: np.ndarray) -> Iterator[tuple[str, str, str, float, float, float, int]]:
        """Yield the `_COLUMNS` of suspicious labels, given their indices, int64 (M,)."""
        for rank, index in enumerate(issues.tolist(), 1):
            values, given = self.probabilities[index], self.samples.labels[index]
            suggested = values.argmax()
            names = self.samples.names[index], self.class_names[given], self.class_names[suggested]
            yield *names, float(values[given]), float(values[suggested]), float(self.probability_wrong[index]), rank

    @cached_property
    def probability_wrong(self) -> np.ndarray:
        """The probability that each label was drawn at random, and not as the network says, float64 (N,).

        The share of labels drawn at random is the likeliest one. Of 10,000 images of CIFAR-10 with 5 % flipped labels
        and networks of 62 % accuracy, 88 % of those with 0.5 or more are flipped, and 17 % of cleanlab's issues.

        Source: our own, a mixture of two distributions.
        """
        from scipy.optimize import minimize_scalar  # imported here because it takes 0.3 s

        given = self.probabilities[np.arange(len(self.samples)), self.samples.labels]
        at_random = 1 / len(self.class_names)

        def loss(share: float) -> float:
            return -float(np.log((1 - share) * given + share * at_random).mean())

        share = float(minimize_scalar(loss, bounds=(1e-6, 0.5), method="bounded").x)
        return share * at_random / ((1 - share) * given + share * at_random)


def check_labels(sweep: Path, directory: Path, trust: Sequence[str] = ()) -> None:
    """Rank the suspicious labels of a cross-validation; write a list, a page and a split file without them.

    `trust` has packages outside this project that the runs may name.

    Raises:
        UserError: if a fold is missing, its images have changed, or the package cleanlab is not installed.
    """
    if importlib.util.find_spec("cleanlab") is None:
        raise ConfigError("labels= needs the package cleanlab, an extra of this project: pip install -e '.[labels]'.")
    records = find_fold_runs(sweep)
    found = predict_out_of_fold([Path(record.run_dir) for record in records], trust)
    issues = rank_label_issues(found.samples.labels, found.probabilities)
    write_label_issues(directory, found, issues)
    num_images, agreed = len(found.samples), found.probabilities.argmax(axis=1) == found.samples.labels
    num_wrong = int((found.probability_wrong[issues] >= 0.5).sum())
    print(f"{num_wrong:,} of {num_images:,} labels are probably wrong, {len(issues):,} are suspicious")
    print(f"networks that were not trained on the image agree with {percent_text(agreed.mean())} of the labels\n")
    for name, given, suggested, _, _, wrong, rank in found.rows(issues[:_MAX_LISTED]):
        print(f"{rank:>4}. {printable(f'{name}: {given}, rather {suggested}')} (wrong with {wrong:.1%})")
    print(f"\nresults in {short_path(directory)}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    print(f"next:\n  {_train_command(records[0], directory / 'split_without_label_issues.csv')}")


def find_fold_runs(sweep: Path) -> list[RunRecord]:
    """Return the finished runs of a cross-validation, at least one for each fold.

    Raises:
        UserError: if there is no such run, or a fold is missing.
    """
    if not sweep.is_dir():
        raise ConfigError(f"labels={sweep} is not a directory; type that of a sweep over data.fold.")
    runs = [
        run for run in read_records(sweep) if run.status == "finished" and run.settings.get("data.fold") is not None
    ]
    if not runs:
        wanted = f"{command('train')} -m 'data.fold=range(5)' ... trains one"
        raise ConfigError(f"labels={sweep} has no finished run of a cross-validation; {wanted}.")
    num_folds = int(runs[0].settings["data.num_folds"])
    if missing := set(range(num_folds)) - {run.settings["data.fold"] for run in runs}:
        remedy = "sweep_name=NAME resume=auto in the command of the sweep trains it"
        raise DataError(f"labels={sweep}: fold {min(missing)} of {num_folds} has no finished run; {remedy}.")
    return runs


def predict_out_of_fold(runs: Sequence[Path], trust: Sequence[str] = ()) -> OutOfFold:
    """Run the best checkpoint of each run of a cross-validation on its val split.

    Raises:
        UserError: if the images of a run are not those of its training, or the folds overlap.
    """
    from imago.data.dataset import concatenate  # loads torch

    parts: dict[tuple[str, ...], tuple[Samples, list[np.ndarray]]] = {}  # by the names of the images of a fold
    for run in runs:
        data, probabilities = _predict_val(run, trust)
        parts.setdefault(data.splits.val.names, (data.splits.val, []))[1].append(probabilities)
    samples = concatenate([part for part, _ in parts.values()])
    name, count = Counter(samples.names).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{printable(name)} is in {count} folds of {runs[0].parent}; divide all runs in the same folds."
        )
    averages = [np.mean(found, axis=0) for _, found in parts.values()]
    return OutOfFold(data.class_names, samples, np.concatenate(averages), data.splits.test)


def _predict_val(run: Path, trust: Sequence[str]) -> tuple["ImageDataModule", np.ndarray]:
    """Return the data of a run, and the probabilities of its val images for the K classes of the data, (M, K)."""
    predictor, data = load_predictor(run, trust=trust), build(read_data_settings(run, trust), _recursive_=False)
    data.set_up_data()
    if read_json(run / "provenance.json").get("data") != data.fingerprint():
        fault = "the dataset has changed since training, so its val images may have been trained on"
        raise DataError(f"{short_path(run)}: {fault}; train the folds again.")
    result = run_split(predictor, data, "val")
    probabilities = softmax(result.logits / result.calibration_temperature)
    return data, probabilities[:, output_indices(predictor, data.class_names)]


def rank_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of suspicious labels, int64 (M,), those with the least probable given class first.

    `labels` are int64 (N,), `probabilities` of networks that were not trained on the image (N, K). As many labels of
    each class are taken as the confusion of given and predicted classes says are wrong.

    Source: Northcutt, Jiang and Chuang 2021 (doi:10.1613/jair.1.12125), "prune by noise rate".
    """
    from cleanlab.filter import find_label_issues

    settings: Any = {"filter_by": "prune_by_noise_rate", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    return np.asarray(find_label_issues(labels, probabilities, **settings), np.int64)


def write_label_issues(directory: Path, found: OutOfFold, issues: np.ndarray) -> None:
    """Write label_issues.csv, a page of the first, and a list for data.split_file without the probably wrong ones."""
    rows = list(found.rows(issues))
    texts = [(*row[:3], *(f"{probability:.6f}" for probability in row[3:6]), row[6]) for row in rows]
    write_csv(directory / "label_issues.csv", [_COLUMNS, *texts])
    is_left_out = np.isin(np.arange(len(found.samples)), issues) & (found.probability_wrong >= 0.5)
    kept = found.samples.take(np.flatnonzero(~is_left_out))
    listed = [
        (name, found.class_names[label], split)
        for split, part in (("train", kept), ("test", found.test))
        for name, label in zip(part.names, part.labels, strict=True)
    ]
    write_csv(directory / "split_without_label_issues.csv", [("path", "label", "split"), *sorted(listed)])
    shown = issues[:_MAX_SHOWN].tolist()
    uris = [thumbnail_uri(found.samples.read(index, found.class_names)) for index in shown]
    context = {"num_issues": len(rows), "num_images": len(found.samples), "images": list(zip(rows, uris, strict=False))}
    write_page("labels.html.j2", context, directory / "label_issues.html")


def _train_command(record: RunRecord, split_file: Path) -> str:
    """Return the command that trains with the settings of a fold on the list without suspicious labels."""
    typed = [f"{name}={value}" for name, value in record.typed.items() if not name.startswith(_NOT_REPEATED)]
    if any("_target_" in text or "${" in text for text in typed):  # in a directory from elsewhere, it could run code
        typed = ["..."]
    return f"{command('train')} {shlex.join([*typed, f'data.split_file={short_path(split_file)}'])}"
