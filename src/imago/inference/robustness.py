"""Measure accuracy and calibration error on corrupted images, made here or of a published set read where it lies."""

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.errors import DataError
from imago.files import report_unwritable, write_csv, write_json
from imago.images import resize_and_crop
from imago.inference.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imago.inference.load import Predictor
from imago.inference.run_split import check_finite, match_classes, split_samples
from imago.seeding import CORRUPTION_KEY, random_bits
from imago.settings import typed_value
from imago.statistics.calibration import reliability
from imago.statistics.groups import ImageDraws, interval_factor, share_interval
from imago.statistics.intervals import NUM_DRAWS, QUANTILES_95, centered
from imago.statistics.metrics import LabeledOutputs
from imago.text import join_names, range_text, table_lines

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

Version = tuple[str, int]  # corruption and severity
_NUM_SAMPLES = 1000  # that of configs/eval.yaml
_MAX_VALUES = 2**20  # of a batch, 341 images of 32 px: with its copies about 50 MB; our own choice


def robustness_problems(typed: Any, num_samples: int | None) -> Iterator[str]:
    """Yield one line for each of `corrupt` and `corrupt_samples` that cannot work."""
    if typed is None and num_samples != _NUM_SAMPLES:
        yield f"corrupt_samples={typed_value(num_samples)} is a setting of corrupt=; leave it out."
    elif num_samples is not None and num_samples < 1:
        yield f"corrupt_samples={num_samples} must be 1 or more, or null for all images."
    for name in [] if typed in (None, "all") or _is_directory(typed) else np.atleast_1d(typed).tolist() or ["[]"]:
        if name not in CORRUPTIONS:
            yield f"corrupt={name} is neither all, a directory, nor one of {join_names(CORRUPTIONS, 15)}."


def _is_directory(typed: Any) -> bool:
    return isinstance(typed, str) and typed not in ("all", *CORRUPTIONS) and os.path.isdir(typed)  # not isdir("")


def read_published(directory: Path) -> tuple[tuple[str, ...], dict[Version, "Samples"]]:
    """Return the class names and images of CIFAR-10-C, CIFAR-10.1 or ImageNet-C; raise a DataError if it is damaged."""
    from imago.data.cifar10 import CLASS_NAMES
    from imago.data.dataset import LabeledArray, numbered_names
    from imago.data.folder_listing import list_image_folder

    parents = [directory, *directory.glob("*/")]  # ImageNet-C is published in folders for each kind of corruption
    folders = [path for parent in parents for path in sorted(parent.glob("*/[1-5]")) if path.parent.name in CORRUPTIONS]
    if folders:
        names, splits, _ = list_image_folder(folders[0])
        return names, {(path.parent.name, int(path.name)): replace(splits["train"], root=path) for path in folders}
    file, severities, split = directory / "labels.npy", SEVERITIES, "test"  # CIFAR-10-C has the test split
    image_files = [directory / f"{name}.npy" for name in CORRUPTIONS if (directory / f"{name}.npy").is_file()]
    for found in sorted(directory.glob("cifar10.1_v?_data.npy")):  # the newest, v6, of those that are there
        file, image_files = found.with_name(found.name.replace("data", "labels")), [found]
        severities, split = range(1, 2), found.stem
    repeated, num_severities = _open_array(file), len(severities)
    labels = repeated.ravel()[: repeated.size // num_severities]
    is_repeated = repeated.dtype.kind in "iu" and np.array_equal(np.tile(labels, num_severities), repeated)
    if not image_files or not labels.size or not is_repeated or not 0 <= labels.min() <= labels.max() < 10:
        expected = f"labels from 0 to 9, {num_severities} times in the same order, and arrays of images beside it"
        raise DataError(f"{file} has {repeated.dtype} {repeated.shape}, expected {expected}; copy the set again.")
    names = numbered_names(split, len(labels))
    versions: dict[Version, Samples] = {}
    for image_file in image_files:
        array = _open_array(image_file)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[::3] != (repeated.size, 3) or not array.size:
            expected = f"uint8 ({repeated.size}, height, width, 3), as many as labels"
            raise DataError(f"{image_file} has {array.dtype} {array.shape}, expected {expected}; copy the set again.")
        for severity, images in zip(severities, np.split(array.transpose(0, 3, 1, 2), num_severities), strict=True):
            versions[image_file.stem, severity] = LabeledArray(images, labels.astype(np.int64), names)
    return CLASS_NAMES, versions


def _open_array(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")  # which refuses pickles
    except (OSError, ValueError, TokenError) as error:  # TokenError: of bytes in the header that are no Python
        fault = f"{file} cannot be read ({' '.join(str(error).split())})"
        raise DataError(f"{fault}; corrupt=DIR takes CIFAR-10-C, CIFAR-10.1 or ImageNet-C as published.") from error


def measure_robustness(
    settings: tuple[Any, int | None], predictor: Predictor, data: "ImageDataModule", split: str, result: LabeledOutputs
) -> dict[str, Any]:
    """Run the network on corrupted images, the same in each corruption; return the content of its JSON file.

    `settings` are `corrupt` and `corrupt_samples`; `result` are the outputs for the images of the split as they are.
    """
    from tqdm import tqdm

    from imago.data.stratified import stratified_order

    samples, class_names, preprocess = split_samples(data, split), data.class_names, predictor.preprocess
    names = CORRUPTIONS if settings[0] == "all" else np.atleast_1d(settings[0]).tolist()
    versions = {(name, severity): samples for name in names for severity in SEVERITIES}
    if is_published := _is_directory(settings[0]):
        class_names, versions = read_published(Path(settings[0]))
        preprocess = replace(preprocess, resize=preprocess.size)  # the images are cropped
    images = next(iter(versions.values()))
    labels = match_classes(class_names, predictor.class_names)[images.labels]
    chosen = np.sort(stratified_order(labels, data.split_plan.split_seed)[: settings[1]])
    step = max(1, min(data.batch_size, _MAX_VALUES // (3 * preprocess.size**2)))
    outputs: dict[Version, list[tuple[np.ndarray, np.ndarray]]] = {version: [] for version in versions}
    batches = np.split(chosen, range(step, len(chosen), step))
    for rows in tqdm(batches, desc="corrupting", unit="batch", leave=False, disable=None):
        hashes, pixels = [zlib.crc32(os.fsencode(images.names[index])) for index in rows], np.empty(0)
        keys = random_bits(data.split_plan.split_seed, CORRUPTION_KEY, np.array(hashes))
        for version, source in versions.items():
            if is_published or not pixels.size:  # of those to corrupt, all versions have the same pixels
                squares = [resize_and_crop(source.read(index, class_names), preprocess) for index in rows.tolist()]
                pixels = np.stack(squares).transpose(0, 3, 1, 2)
            logits, probabilities = predictor.predict(pixels if is_published else corrupt(pixels, *version, keys))
            check_finite(logits)
            outputs[version].append((logits.argmax(axis=1) == labels[rows], probabilities.max(axis=1)))
    positions = {name: index for index, name in enumerate(samples.names)}
    same = np.array([positions.get(images.names[index], -1) for index in chosen])
    is_paired = same.min() >= 0 and np.array_equal(result.labels[same], labels[chosen])
    clean = result.is_correct[same] if is_paired else result.is_correct
    groups = result.groups[same] if is_paired and result.groups is not None else None
    return {"corrupt": settings[0], "num_all_images": len(labels), **_summarize(outputs, clean, is_paired, groups)}


def _summarize(outputs: Mapping[Version, Any], clean: np.ndarray, is_paired: bool, groups: Any) -> dict[str, Any]:
    """Return scores by corruption, and their mean, whose interval accounts for images that are in every corruption."""
    corruptions: dict[str, dict[str, list[Any]]] = {}
    measured = {version: [*map(np.concatenate, zip(*parts, strict=True))] for version, parts in outputs.items()}
    for (name, severity), (is_correct, best) in measured.items():
        scores = corruptions.setdefault(name, {"severity": [], "acc": [], "acc_interval": [], "calibration_error": []})
        scores["severity"].append(severity)
        scores["acc"].append(float(is_correct.mean()))
        scores["acc_interval"].append(share_interval(is_correct, groups))
        scores["calibration_error"].append(reliability(best, is_correct).ece)
    mean = np.mean([is_correct for is_correct, _ in measured.values()], axis=0)  # of each image
    summary = {"clean_acc": float(clean.mean()), "num_images": len(mean), "corruptions": corruptions}
    shares = {"mean_corrupted_acc": (mean, 0)} | ({"difference": (mean - clean, -1)} if is_paired else {})
    for name, (values, lowest) in shares.items():
        summary |= {name: float(values.mean()), f"{name}_interval": _mean_interval(values, lowest, groups)}
    return summary


def _mean_interval(values: np.ndarray, lowest: float, groups: np.ndarray | None) -> list[float]:
    """Return the 95 % interval of the mean of values in [lowest, 1], (N,), by draws as those of `macro_intervals`."""
    draws, generator, means = ImageDraws(values, groups), np.random.default_rng(0), np.empty(NUM_DRAWS)
    for index in range(NUM_DRAWS):
        drawn, num_unseen = draws.draw(generator)
        means[index] = (values[drawn[num_unseen:]].sum() + lowest * num_unseen) / len(drawn)
    factor = 1 if groups is None else interval_factor(len(np.unique(groups))) ** 0.5
    ends = values.mean() + factor * (np.quantile(centered(means, values.mean()), QUANTILES_95) - values.mean())
    return [*map(float, ends.clip(lowest, 1))]


def write_robustness(directory: Path, content: Mapping[str, Any]) -> list[str]:
    """Print a table; write `content` to robustness.json, .csv, .png, of a part robustness-PART.*; return the names."""
    from imago.analysis.plots import plot_robustness, save_figure

    number = f"{content['num_images']:,} of {content['num_all_images']:,} images, the same in each corruption"
    print(f"\ncorrupted images: {number}\nclean_acc: {content['clean_acc']:.2%}")
    for name in (name for name in ("mean_corrupted_acc", "difference") if name in content):
        print(f"{name}: {content[name]:.2%}, 95 % interval {range_text(*content[f'{name}_interval'])}")
    table = [["accuracy, %", *map(str, SEVERITIES), "mean", "ECE, %"]]
    rows: list[Sequence[Any]] = [("corruption", "severity", "acc", "low", "high", "calibration_error")]
    for name, scores in content["corruptions"].items():
        of_severity = dict(zip(scores["severity"], scores["acc"], strict=True))  # a published set may lack some
        cells = [*map(of_severity.get, SEVERITIES), np.mean(scores["acc"]), np.mean(scores["calibration_error"])]
        table.append([name, *("" if value is None else f"{100 * value:.1f}" for value in cells)])
        columns = zip(*scores.values(), strict=True)
        rows += [(name, severity, acc, *interval, error) for severity, acc, interval, error in columns]
    print("", *table_lines(table, right=range(1, len(table[0]))), sep="\n")
    with report_unwritable(directory, "; choose another directory with output=DIR"):
        files = [f"{_file_stem(content)}.{suffix}" for suffix in ("json", "csv", "png")]
        write_json(directory / files[0], content)
        write_csv(directory / files[1], rows)
        save_figure(plot_robustness(content), directory / files[2])
    return files


def _file_stem(content: Mapping[str, Any]) -> str:
    typed, num_images = content["corrupt"], content["num_images"]
    name = Path(typed).resolve().name if _is_directory(typed) else "+".join(np.atleast_1d(typed).tolist())
    parts = ["robustness", *([] if typed == "all" else [re.sub(r"[^\w.+-]+", "_", name)])]
    is_small = num_images < min(_NUM_SAMPLES, content["num_all_images"])
    return "-".join([*parts, *([f"{num_images}_images"] if is_small else [])])
