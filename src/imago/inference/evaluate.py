"""The command `eval.py`: evaluate a trained network on val or test images."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError, DataError
from imago.files import make_writable, read_json
from imago.images import TTA
from imago.inference.calibration import KEY, calibrate
from imago.inference.load import Predictor, check_settings, find_model, is_onnx, load_predictor, run_directory
from imago.inference.results import summary_lines, write_results
from imago.inference.run_split import SPLITS, match_classes, run_split, split_samples
from imago.instantiate import build, check_targets
from imago.paths import checkpoint_file, short_path
from imago.statistics.calibration import UNCALIBRATED

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

_SOURCE = ("_target_", "root", "list_file", "name")  # data settings that say where the images come from
_PATHS = ("root", "list_file")  # those that can be typed in several ways


def evaluate(cfg: DictConfig) -> float:
    """Evaluate as configured and write all results to one directory.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        UserError: for what the user can correct.
    """
    _check_settings(cfg)
    file = find_model(cfg.run, cfg.ckpt, cfg.accelerator)
    run = run_directory(Path(cfg.run))
    settings = _data_settings(cfg, run)
    own_run = run if run is not None and _is_own(run, settings) else None
    if own_run and cfg.split == "all":
        raise ConfigError("split=all would count the images that the run was trained on; type other data, data=...")
    folder = Path(cfg.output) if cfg.output else (run or file.parent) / "eval" / _result_name(cfg, file)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # messages of the data set
    logging.getLogger("imago").setLevel(logging.INFO)

    # torch is loaded only now. A damaged file is reported before data is read.
    predictor = load_predictor(file, cfg.extra_targets, cfg.accelerator, cfg.tta, is_calibrated=not cfg.calibrate)
    data: ImageDataModule = build(settings, extra_targets=cfg.extra_targets)
    data.set_up_data()
    note = _compare_with_training(cfg, data, own_run)
    data.preprocess = predictor.preprocess
    class_indices = match_classes(data.class_names, predictor.class_names)
    make_writable(folder, "output=DIR")
    if cfg.calibrate:
        entry = calibrate(file, run_split(predictor, data, "val", class_indices), cfg.tta)
        predictor.calibration_temperature = entry[KEY]
    result = run_split(predictor, data, cfg.split, class_indices)
    info = _describe(cfg, file, run, settings, data, predictor) | result.metrics()
    written = write_results(folder, result, info, split_samples(data, cfg.split))
    print("\n".join(summary_lines(result, info, _compare_with_final_test(run, info))))
    print(f"\nresults in {short_path(folder)}: {', '.join(written)}")
    if note:
        print(f"note: {note}")
    return float(info["acc"])


def read_data_settings(run: Path, extra_targets: Sequence[str]) -> dict[str, Any]:
    """Read the data settings of a run; nothing is built yet.

    `split_file` becomes the run's own copy: the typed file may have been moved.

    Raises:
        DataError: if its config.yaml cannot be read or has no data settings.
        ConfigError: if a target is not allowed, whatever the run itself allowed.
    """
    settings = _read_config(run).get("data")
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise DataError(f"{run / 'config.yaml'} names no data set; restore the file, or train again.")
    if settings.get("split_file") and (run / "split.csv").is_file():
        settings["split_file"] = str(run / "split.csv")
    check_targets(settings, extra_targets, "data")
    return settings


def _check_settings(cfg: DictConfig) -> None:
    run, tta, size, output = cfg.run, cfg.tta, cfg.batch_size, cfg.output
    is_exported = is_onnx(Path(run or ""))
    check_settings(
        {
            f"split={cfg.split} is not one of {', '.join(SPLITS)}.": cfg.split not in SPLITS,
            f"tta={tta} is not one of {', '.join(TTA)}.": tta not in TTA,
            f"tta={tta} needs a checkpoint; run={run} is an ONNX file, which has one view.": tta != "none"
            and is_exported,
            f"calibrate=true: run={run} is an ONNX file; calibrate its run, export again.": cfg.calibrate
            and is_exported,
            "calibrate=true fits on the val images of the run; leave data= out.": cfg.calibrate and "data" in cfg,
            f"batch_size={size} must be 1 or more.": size is not None and size < 1,
            f"output={output} is a file; type a directory for the results.": Path(output or "").is_file(),
        }
    )


def _data_settings(cfg: DictConfig, run: Path | None) -> dict[str, Any]:
    """Return the settings of the typed data set, else those of the run's own."""
    settings: Any
    if "data" in cfg:
        settings = OmegaConf.to_container(cfg.data, resolve=True)
    elif run is None:
        raise ConfigError(
            f"run={cfg.run} is not in a run directory that names its data; add e.g. data=image_folder data.root=DIR."
        )
    else:
        settings = read_data_settings(run, cfg.extra_targets)
    return settings | ({"batch_size": cfg.batch_size} if cfg.batch_size is not None else {})


def _read_config(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # PyYAML's and OmegaConf's exceptions have no other common base class
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
    return config if isinstance(config, dict) else {}


def _is_own(run: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether data settings name the images of the run, however they are split."""
    own = _read_config(run).get("data") or {}
    return all(_source(own, key) == _source(settings, key) for key in _SOURCE)


def _source(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return os.path.realpath(value) if value and key in _PATHS else value


def _describe(
    cfg: DictConfig,
    file: Path,
    run: Path | None,
    settings: Mapping[str, Any],
    data: "ImageDataModule",
    predictor: Predictor,
) -> dict[str, Any]:
    """Return the first keys of metrics.json: what was evaluated, on what and how."""
    info = {
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
        info[KEY] = predictor.calibration_temperature
    return info


def _compare_with_training(cfg: DictConfig, data: "ImageDataModule", own_run: Path | None) -> str:
    """Return a note if images that were trained on may be among those of the split, or if they are only a few.

    Args:
        cfg: the settings.
        data: set up.
        own_run: the run if these are its own images, else None.

    Raises:
        ConfigError: if the run's own images are split in another way than in training.
    """
    is_drawn = cfg.split in data.drawn
    if own_run is None and is_drawn:
        count, total = len(split_samples(data, cfg.split)), sum(len(part) for _, part in data.splits.named())
        return f"the data set has no {cfg.split} split: these are {count:,} of its {total:,}; split=all takes all"
    if own_run is None or read_json(own_run / "provenance.json").get("data") in (None, data.fingerprint()):
        return ""
    if is_drawn and "data" in cfg:
        raise ConfigError(
            f"split={cfg.split} of the run's own images is drawn differently here than in its training: it would "
            "contain images that were trained on. Leave data= out to use the split of the training."
        )
    return (
        "the data set of the run has changed since training: files were changed, or it is split differently.\n"
        "      Unless the split is a fixed part of it, images that were trained on may be among these."
    )


def _result_name(cfg: DictConfig, file: Path) -> str:
    """Return a directory name: SPLIT, and what distinguishes this evaluation: its data, checkpoint and views."""
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


def _compare_with_final_test(run: Path | None, info: Mapping[str, Any]) -> str:
    """Compare the accuracy with the run's final test, if it used the same checkpoint and images; else return ""."""
    if run is None or info["split"] != "test" or Path(info["model"]) != checkpoint_file(run):
        return ""
    test = read_json(run / "summary.json").get("test") or {}
    fingerprint = read_json(run / "provenance.json").get("data")
    if fingerprint != info["data_fingerprint"] or test.get("num_images") != info["num_images"]:
        return ""
    views = "" if test.get("tta", "none") == info["tta"] else f", with tta={test.get('tta', 'none')}"
    is_same = not views and test["acc"] == info["acc"]
    return f" (the run's final test{views}: {'the same' if is_same else format(test['acc'], '.2%')})"
