"""`eval.py`: a trained network over the val or test pictures, as numbers, tables and one figure."""

import csv
import importlib.util
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from imago.analysis.metrics import Result, most_confused
from imago.errors import ConfigError, DataError
from imago.run.checks import TTA
from imago.run.folder import read_json, write_json
from imago.run.load import Predictor, find_model, is_onnx, load_predictor, run_folder
from imago.targets import build, check_targets

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

_MAX_LISTED = 20  # classes that fit on a screen; of more, the weakest are shown
_CONFIG = "config.yaml"


def evaluate(cfg: DictConfig) -> float:
    """Evaluate as the settings say; everything lands in one folder.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        UserError: for what the user can mend.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    run = run_folder(Path(cfg.run))
    settings = _data_settings(cfg, run)
    folder = Path(cfg.output) if cfg.output else (run or file.parent) / "eval" / _result_name(cfg, file)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # what the data set has to tell
    logging.getLogger("imago").setLevel(logging.INFO)

    # Torch is loaded only now, when nothing is left to refuse.
    predictor = load_predictor(file, extra_targets=cfg.extra_targets, accelerator=cfg.accelerator, tta=cfg.tta)
    data: ImageDataModule = build(settings, extra_targets=cfg.extra_targets)
    data.set_up_data()
    data.preprocess = predictor.preprocess
    known = match_classes(data.class_names, predictor.class_names)
    result = run_split(predictor, data, cfg.split, known)
    facts = {
        "run": str(run or file.parent),
        "model": str(file.resolve()),
        "data": settings["_target_"].rsplit(".", 1)[-1].removesuffix("DataModule"),
        "data_root": settings.get("root"),
        "data_fingerprint": data.fingerprint(),
        "split": cfg.split,
        "tta": cfg.tta,
        "preprocess": predictor.preprocess.to_dict(),
    }
    written = write_results(folder, result, facts, _picture_names(data, cfg.split))
    print(_screen(cfg, result, facts, run))
    print(f"\nresults in {_short(folder)}: {', '.join(written)}")
    if run is not None and _is_changed(run, settings, facts["data_fingerprint"]):
        print(
            "note: this is the data set of the run, but not as it was: files have changed, or it is split otherwise.\n"
            "      Unless the split is a fixed part of it, pictures that were trained on may be among these."
        )
    return result.metrics()["acc"]


def match_classes(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Give for each class of a data set its place among the classes of the network, int64.

    Raises:
        DataError: if the network does not know one; it cannot be right about its pictures.
    """
    places = {unicodedata.normalize("NFC", name): place for place, name in enumerate(known)}
    missing = [name for name in names if unicodedata.normalize("NFC", name) not in places]
    if missing:
        raise DataError(
            f"the data set has classes that the network does not know: {_listed(missing)}; it knows {_listed(known)}. "
            "Rename or remove their folders."
        )
    return np.array([places[unicodedata.normalize("NFC", name)] for name in names], np.int64)


def run_split(predictor: Predictor, data: "ImageDataModule", split: str, places: np.ndarray) -> Result:
    """Map every picture of a split to logits.

    Args:
        predictor: the network.
        data: set up, with the network's preprocess.
        split: val or test.
        places: of `match_classes`.
    """
    from tqdm import tqdm

    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    labels, logits, confidence = [], [], []
    for images, batch_labels in tqdm(loader, desc=split, unit="batch", leave=False, disable=None):
        batch_logits, probabilities = predictor.predict(images.numpy())
        logits.append(batch_logits)
        confidence.append(probabilities.max(axis=1))
        labels.append(places[batch_labels.numpy()])
    result = Result(predictor.class_names, *map(np.concatenate, (labels, logits, confidence)))
    if not np.isfinite(result.logits).all():
        raise DataError("the network gives numbers that are not finite; its weights are of no use.")
    return result


def write_results(folder: Path, result: Result, facts: Mapping[str, Any], pictures: Sequence[Path] | None) -> list[str]:
    """Write metrics.json, per_class.csv, confusion.csv, predictions.csv and confusion.png; gives the names.

    Args:
        folder: made if it is not there; older results in it are replaced.
        result: of `run_split`.
        facts: go into metrics.json before the numbers.
        pictures: files by their place in the split, or None where there are none.

    Raises:
        DataError: if it cannot be written.
    """
    names, metrics = result.class_names, result.metrics()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", {**facts, **metrics})
        _write_csv(folder / "per_class.csv", _per_class_rows(result))
        header = ["true class \\ predicted", *names]
        counts = result.confusion.tolist()
        _write_csv(folder / "confusion.csv", [header, *([n, *row] for n, row in zip(names, counts, strict=True))])
        _write_csv(folder / "predictions.csv", _prediction_rows(result, pictures))
        written = ["metrics.json", "per_class.csv", "confusion.csv", "predictions.csv"]
        if importlib.util.find_spec("matplotlib") is None:
            return [*written, "but no confusion.png, as matplotlib is not installed"]
        from imago.analysis.plots import save_confusion

        title = f"{facts['split']}: {metrics['acc']:.2%} of {metrics['num_images']:,} pictures right"
        save_confusion(result.confusion, names, title, folder / "confusion.png")
        return [*written, "confusion.png"]
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}; name another folder, output=DIR.") from error


def _check_settings(cfg: DictConfig) -> None:
    if cfg.split not in ("val", "test"):
        raise ConfigError(f"split={cfg.split} is not one of test, val.")
    if cfg.tta not in TTA:
        raise ConfigError(f"tta={cfg.tta} is not one of {', '.join(TTA)}.")
    if cfg.tta != "none" and is_onnx(Path(cfg.run)):
        raise ConfigError(f"tta={cfg.tta}: run={cfg.run} is an ONNX file, which shows one view; give a checkpoint.")
    if cfg.batch_size is not None and cfg.batch_size < 1:
        raise ConfigError(f"batch_size={cfg.batch_size} must be 1 or more.")
    if cfg.output and Path(cfg.output).exists() and not Path(cfg.output).is_dir():
        raise ConfigError(f"output={cfg.output} is a file; give a folder for the results.")


def _data_settings(cfg: DictConfig, run: Path | None) -> dict[str, Any]:
    """The typed data set, else the run's own; its targets are checked, and nothing is read yet."""
    if "data" in cfg:
        settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    elif run is None:
        raise ConfigError(
            f"run={cfg.run} lies in no run folder, so nothing tells its data; add e.g. data=image_folder data.root=DIR."
        )
    else:
        settings = _saved_settings(run / _CONFIG).get("data")
        if isinstance(settings, dict) and settings.get("split_file") and (run / "split.csv").is_file():
            settings["split_file"] = str(run / "split.csv")  # the run's own copy: the typed one may have moved
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise DataError(f"{run}/{_CONFIG} names no data set; add e.g. data=image_folder data.root=DIR.")
    check_targets(settings, cfg.extra_targets, "data")
    return settings | ({"batch_size": cfg.batch_size} if cfg.batch_size is not None else {})


def _saved_settings(file: Path) -> dict[str, Any]:
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # PyYAML's and OmegaConf's share no base but this one
        raise DataError(f"{file} cannot be read ({' '.join(str(error).split())}).") from error
    return settings if isinstance(settings, dict) else {}


def _is_changed(run: Path, settings: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether it is the run's own data set with other files, or with other pictures in its splits."""
    own = _saved_settings(run / _CONFIG).get("data") or {}
    if any(own.get(key) != settings.get(key) for key in ("_target_", "root")):
        return False
    return read_json(run / "provenance.json").get("data", fingerprint) != fingerprint


def _result_name(cfg: DictConfig, file: Path) -> str:
    """SPLIT, and what else tells this evaluation from others of the run: its data, its checkpoint."""
    from hydra.core.hydra_config import HydraConfig

    parts = [cfg.split]
    if "data" in cfg:
        choice = str(HydraConfig.get().runtime.choices["data"])
        root = Path(cfg.data.get("root") or choice).resolve().name[:60]
        parts += [choice] if root in (choice, "") else [choice, root]
    if is_onnx(file) or file.stem != "best":
        parts.append(file.name if is_onnx(file) else file.stem)
    if cfg.tta != "none":
        parts.append(f"tta_{cfg.tta}")
    return "-".join(parts)


def _picture_names(data: "ImageDataModule", split: str) -> Sequence[Path] | None:
    from imago.data.dataset import LabelledFiles

    pictures = dict(data.splits.named())[split]
    return pictures.paths if isinstance(pictures, LabelledFiles) else None


def _per_class_rows(result: Result) -> Iterable[Sequence[Any]]:
    yield "class", "precision", "recall", "f1", "n"
    scores = result.per_class
    columns = (scores.precision, scores.recall, scores.f1)
    for place, name in enumerate(result.class_names):
        yield name, *(round(float(column[place]), 6) for column in columns), int(scores.count[place])


def _prediction_rows(result: Result, pictures: Sequence[Path] | None) -> Iterable[Sequence[Any]]:
    yield "picture", "true", "predicted", "probability"
    names = result.class_names
    for place, (true, predicted) in enumerate(zip(result.labels, result.predicted, strict=True)):
        picture = pictures[place] if pictures is not None else place
        yield picture, names[true], names[predicted], f"{result.confidence[place]:.6f}"


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    # `surrogateescape` gives a file name that is no UTF-8 back as it is on the disk.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _screen(cfg: DictConfig, result: Result, facts: Mapping[str, Any], run: Path | None) -> str:
    metrics, names = result.metrics(), result.class_names
    low, high = metrics["interval_95"]
    mistakes = [f"{names[true]} as {names[taken]} {n} x" for true, taken, n in most_confused(result.confusion, 4)]
    rows = {
        "model": _short(Path(facts["model"])),
        "data": f"{facts['data']} {cfg.split}, {metrics['num_images']:,} pictures",
        "accuracy": f"{metrics['acc']:.2%}, 95 % interval {low:.2%} to {high:.2%}{_final_test(run, facts, metrics)}",
        **({"views": f"mean over several views of each picture, tta={cfg.tta}"} if cfg.tta != "none" else {}),
        **({"top-5": f"{metrics['top5_acc']:.2%}"} if "top5_acc" in metrics else {}),
        "macro F1": f"{metrics['macro_f1']:.4f}",
        **({"confused": ", ".join(mistakes)} if mistakes else {}),
    }
    facts_lines = [f"{name:<8}  {value}" for name, value in rows.items()]
    return "\n".join([*facts_lines, "", *_class_table(result)])


def _final_test(run: Path | None, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Hold the accuracy against the final test of the run, where it is the same question."""
    if run is None or facts["split"] != "test" or Path(facts["model"]) != run / "checkpoints" / "best.ckpt":
        return ""
    test = read_json(run / "summary.json").get("test") or {}
    is_same_data = read_json(run / "provenance.json").get("data") == facts["data_fingerprint"]
    is_same_view = test.get("tta", "none") == facts["tta"]
    if not is_same_data or not is_same_view or test.get("num_images") != metrics["num_images"]:
        return ""
    is_same = test["acc"] == metrics["acc"]
    return " (the run's final test: the same)" if is_same else f" (the run's final test: {test['acc']:.2%})"


def _class_table(result: Result) -> list[str]:
    """Precision, recall, F1 and n of the classes that have pictures; of many, the weakest."""
    scores = result.per_class
    present = np.flatnonzero(scores.count)
    shown = present if len(present) <= _MAX_LISTED else present[np.argsort(scores.f1[present])[:_MAX_LISTED]]
    width = max(len("class"), *(len(result.class_names[place]) for place in shown))
    lines = [f"{'class':<{width}}  precision   recall       F1        n"]
    lines += [
        f"{result.class_names[place]:<{width}}   {scores.precision[place]:>8.2%} {scores.recall[place]:>8.2%} "
        f"{scores.f1[place]:>8.4f} {scores.count[place]:>8,}"
        for place in shown
    ]
    if len(shown) < len(present):
        lines.append(f"the weakest {len(shown)} of {len(present)} classes; all of them are in per_class.csv")
    return lines


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _short(path: Path) -> str:
    """The path as one would type it here, whichever way is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
