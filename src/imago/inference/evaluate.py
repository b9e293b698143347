"""`eval.py`: a trained network over the val or test images, as numbers, tables and figures."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError, DataError
from imago.files import make_writable, read_json
from imago.images import TTA
from imago.inference.calibration import KEY, calibrate
from imago.inference.load import Predictor, find_model, is_onnx, load_predictor, run_directory
from imago.inference.results import write_results
from imago.inference.run_split import SPLITS, match_classes, run_split, split_images, validate
from imago.instantiate import build, check_targets
from imago.paths import short_path
from imago.statistics.calibration import UNCALIBRATED
from imago.statistics.metrics import Result, most_confused
from imago.text import display_width, padded, printable

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

_MAX_LISTED = 20  # classes that fit on a screen; of more, the weakest are shown
_CONFIG = "config.yaml"
_SOURCE = ("_target_", "root", "list_file", "name")  # data settings that say where the images come from
_PATHS = ("root", "list_file")  # those that can be typed in several ways


def evaluate(cfg: DictConfig) -> float:
    """Evaluate as the settings say; everything lands in one folder.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        UserError: for what the user can mend.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    run = run_directory(Path(cfg.run))
    settings = _data_settings(cfg, run)
    folder = Path(cfg.output) if cfg.output else (run or file.parent) / "eval" / _result_name(cfg, file)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # what the data set has to tell
    logging.getLogger("imago").setLevel(logging.INFO)

    # Torch is loaded only now; a damaged file is told before data are read. What is to be calibrated is loaded after.
    predictor = None if cfg.calibrate else _load(cfg, file)
    data: ImageDataModule = build(settings, extra_targets=cfg.extra_targets)
    data.set_up_data()
    if run is not None and "data" in cfg:
        _refuse_own_images_split_otherwise(cfg, data, run, settings)
    if cfg.calibrate:
        calibrate(file, validate(file, data, cfg.extra_targets, cfg.accelerator, cfg.tta), cfg.tta)
    predictor = predictor or _load(cfg, file)
    data.preprocess = predictor.preprocess
    make_writable(folder, "output=DIR")
    result = run_split(predictor, data, cfg.split, match_classes(data.class_names, predictor.class_names))
    metrics, facts = result.metrics(), _facts(cfg, file, run, settings, data, predictor)
    written = write_results(folder, result, facts | metrics, data)
    print(_screen(result, facts, metrics, run))
    print(f"\nresults in {short_path(folder)}: {', '.join(written)}")
    for note in _notes(cfg, data, run, settings, facts["data_fingerprint"]):
        print(f"note: {note}")
    return metrics["acc"]


def _load(cfg: DictConfig, file: Path) -> Predictor:
    return load_predictor(file, extra_targets=cfg.extra_targets, accelerator=cfg.accelerator, tta=cfg.tta)


def _check_settings(cfg: DictConfig) -> None:
    if cfg.split not in SPLITS:
        raise ConfigError(f"split={cfg.split} is not one of {', '.join(SPLITS)}.")
    if cfg.tta not in TTA:
        raise ConfigError(f"tta={cfg.tta} is not one of {', '.join(TTA)}.")
    if cfg.tta != "none" and is_onnx(Path(cfg.run)):
        raise ConfigError(f"tta={cfg.tta}: run={cfg.run} is an ONNX file, which shows one view; give a checkpoint.")
    if cfg.calibrate and is_onnx(Path(cfg.run)):
        raise ConfigError(f"calibrate=true: run={cfg.run} is an ONNX file; calibrate its run, then export it again.")
    if cfg.calibrate and "data" in cfg:
        raise ConfigError("calibrate=true fits on the val images of the run's own data; leave data= out.")
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
            f"run={cfg.run} is in no run directory that names its data; add e.g. data=image_folder data.root=DIR."
        )
    else:
        settings = _saved_settings(run / _CONFIG).get("data")
        if isinstance(settings, dict) and settings.get("split_file") and (run / "split.csv").is_file():
            settings["split_file"] = str(run / "split.csv")  # the run's own copy: the typed one may have moved
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise DataError(f"{run}/{_CONFIG} names no data set; add e.g. data=image_folder data.root=DIR.")
    check_targets(settings, cfg.extra_targets, "data")
    if cfg.split == "all" and run is not None and _is_own(run, settings):
        raise ConfigError("split=all would count the images that the run was trained on; give other data, data=...")
    return settings | ({"batch_size": cfg.batch_size} if cfg.batch_size is not None else {})


def _saved_settings(file: Path) -> dict[str, Any]:
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # PyYAML's and OmegaConf's share no base but this one
        raise DataError(f"{file} cannot be read ({' '.join(str(error).split())}).") from error
    return settings if isinstance(settings, dict) else {}


def _is_own(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether these are the data settings of the run, as far as they say which images there are."""
    own = _saved_settings(run / _CONFIG).get("data") or {}
    return all(_source(own, key) == _source(settings, key) for key in _SOURCE)


def _refuse_own_images_split_otherwise(
    cfg: DictConfig, data: "ImageDataModule", run: Path, settings: Mapping[str, Any]
) -> None:
    trained_on = read_json(run / "provenance.json").get("data")
    if _is_own(run, settings) and cfg.split in data.drawn and trained_on not in (None, data.fingerprint()):
        raise ConfigError(
            f"split={cfg.split} of the run's own images is drawn otherwise here than in its training: it would "
            "hold images that were trained on. Leave data= out, and they are split as they were."
        )


def _source(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return os.path.realpath(value) if value and key in _PATHS else value


def _facts(
    cfg: DictConfig,
    file: Path,
    run: Path | None,
    settings: Mapping[str, Any],
    data: "ImageDataModule",
    predictor: Predictor,
) -> dict[str, Any]:
    """What was evaluated, on what and how: the top of metrics.json."""
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
    if predictor.calibration_temperature != UNCALIBRATED:
        facts[KEY] = predictor.calibration_temperature
    return facts


def _notes(
    cfg: DictConfig, data: "ImageDataModule", run: Path | None, settings: Mapping[str, Any], fingerprint: str
) -> Iterator[str]:
    """What should be known about the images before the numbers are believed."""
    if run is not None and _is_own(run, settings):
        if read_json(run / "provenance.json").get("data", fingerprint) != fingerprint:
            yield (
                "this is the data set of the run, but not as it was: files have changed, or it is split otherwise.\n"
                "      Unless the split is a fixed part of it, images that were trained on may be among these."
            )
    elif cfg.split in data.drawn:
        total = sum(len(part) for _, part in data.splits.named())
        part = sum(len(part) for _, part in split_images(data, cfg.split))
        yield f"the data set has no {cfg.split} split: these are {part:,} of its {total:,}; split=all takes all of them"


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


def _screen(result: Result, facts: Mapping[str, Any], metrics: Mapping[str, Any], run: Path | None) -> str:
    names, count = [printable(name) for name in result.class_names], metrics["num_images"]
    mistakes = [f"{names[true]} as {names[taken]} {n} x" for true, taken, n in most_confused(result.confusion, 4)]
    fitted = f"temperature {facts[KEY]:.3f}, fitted on val" if KEY in facts else "not calibrated"
    top5 = {"top-5": f"{metrics['top5_acc']:.2%}, {_range(metrics, 'top5_acc')}"} if "top5_acc" in metrics else {}
    rows = {
        "model": short_path(Path(facts["model"])),
        "data": f"{facts['data']} {facts['split']}, {count:,} images, each seen once",
        "accuracy": f"{metrics['acc']:.2%}, {_range(metrics, 'acc')}{_final_test(run, facts, metrics)}",
        **({"views": f"mean over several views of each image, tta={facts['tta']}"} if facts["tta"] != "none" else {}),
        **top5,
        "macro F1": f"{metrics['macro_f1']:.4f}, {_range(metrics, 'macro_f1')}",
        "ECE": f"{metrics['ece']:.2%}, {_range(metrics, 'ece')} ({fitted})",
        **({"confused": ", ".join(mistakes)} if mistakes else {}),
    }
    facts_lines = [f"{name:<8}  {value}" for name, value in rows.items()]
    return "\n".join([*facts_lines, "", *_class_table(result)])


def _range(metrics: Mapping[str, Any], name: str) -> str:
    low, high = metrics["interval_95" if name == "acc" else f"{name}_interval_95"]
    form = ".4f" if name == "macro_f1" else ".2%"
    return f"95 % interval {low:{form}} to {high:{form}}"


def _final_test(run: Path | None, facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Hold the accuracy against the final test of the run, where it is the same question."""
    if run is None or facts["split"] != "test" or Path(facts["model"]) != run / "checkpoints" / "best.ckpt":
        return ""
    test = read_json(run / "summary.json").get("test") or {}
    is_same_data = read_json(run / "provenance.json").get("data") == facts["data_fingerprint"]
    if not is_same_data or test.get("num_images") != metrics["num_images"]:
        return ""
    views = test.get("tta", "none")
    if views != facts["tta"]:
        return f" (the run's final test, with tta={views}: {test['acc']:.2%})"
    is_same = test["acc"] == metrics["acc"]
    return " (the run's final test: the same)" if is_same else f" (the run's final test: {test['acc']:.2%})"


def _class_table(result: Result) -> list[str]:
    """Precision, recall, F1 and n of the classes that have images; of many, the weakest."""
    scores = result.per_class
    present = np.flatnonzero(scores.count)
    shown = present if len(present) <= _MAX_LISTED else present[np.argsort(scores.f1[present])[:_MAX_LISTED]]
    names = [printable(name) for name in result.class_names]
    width = max(len("class"), *(display_width(names[place]) for place in shown))
    lines = [f"{'class':<{width}}  precision   recall       F1        n"]
    lines += [
        f"{padded(names[place], width)}   {scores.precision[place]:>8.2%} {scores.recall[place]:>8.2%} "
        f"{scores.f1[place]:>8.4f} {scores.count[place]:>8,}"
        for place in shown
    ]
    if len(shown) < len(present):
        lines.append(f"the weakest {len(shown)} of {len(present)} classes; all of them are in per_class.csv")
    return lines
