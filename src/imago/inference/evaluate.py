"""The command `eval.py`: evaluate a trained network on val or test images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError, UserError
from imago.files import make_writable, read_json, sha256_of
from imago.images import TTA_MODES
from imago.inference.calibration import calibrate, describe_calibration, read_detector, read_sets
from imago.inference.data_settings import image_source, read_data_settings, training_data
from imago.inference.find_images import find_images
from imago.inference.find_model import check_and_find_model, is_onnx
from imago.inference.load import Predictor, TorchPredictor, load_predictor
from imago.inference.results import MAX_NAME_CHARS, compare_with_final_test, summary_lines, write_results
from imago.inference.robustness import measure_robustness, robustness_problems, write_robustness
from imago.inference.run_split import EVALUATED_SPLITS, images_digest, run_split, split_samples
from imago.inference.trained_images import trained_on_note
from imago.inference.unknown_images import check_unknown, evaluate_unknown, ood_name
from imago.instantiate import build, targets, to_plain
from imago.log import log_to
from imago.paths import short_path
from imago.resources import first_cpu_times, is_thread_setting
from imago.runs.records import unfinished_note
from imago.settings import absolute_paths, typed_value
from imago.statistics.calibration import TEMPERATURE_KEY, UNCALIBRATED
from imago.statistics.conformal import measure_sets, missing_sets_note
from imago.statistics.metrics import LabeledOutputs
from imago.text import printable_lines

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule

_NUM_DIGITS = 8  # of a hash in the name of a directory; our own choice


@log_to()
def evaluate(cfg: DictConfig) -> float:
    """Evaluate as configured and write all results to one directory.

    Return the accuracy, in [0, 1]; raise a `UserError` for what the user can correct.
    """
    first_cpu_times()  # `threads=auto` counts the cores that are idle from here on, while torch is imported
    if "model" in cfg:
        cfg.run = str(_write_network_run(cfg))
    file, run = check_and_find_model(cfg.run, cfg.ckpt, cfg.accelerator, _problems(cfg))
    if cfg.calibrate == "fit" and _is_foreign(file, run):
        raise ConfigError(f"calibrate=fit: ckpt={cfg.ckpt} is not of run={cfg.run}, on whose val it would be fitted.")
    ood_images, settings = find_images(cfg.ood, "ood") if cfg.ood else [], _data_settings(cfg, run)
    is_own_data = image_source(training_data(run)) == image_source(settings)
    if is_own_data and cfg.split == "all":
        raise ConfigError("split=all would count the images that the run was trained on; type other data, data=...")
    # torch is loaded only now. A damaged file is reported before data is read.
    predictor = load_predictor(file, cfg.accelerator, cfg.tta, cfg.calibrate == "auto", cfg.trust, cfg.threads)
    data: ImageDataModule = build(settings, _recursive_=False)
    data.set_up_data(None if is_own_data or cfg.calibrate == "fit" else cfg.split)
    notes = [missing_sets_note(predictor.prediction_sets)] if cfg.calibrate == "auto" else []
    notes += [unfinished_note(run) if run else "", *_training_notes(cfg, file, run, data, is_own_data)]
    if cfg.calibrate == "fit":
        _fit_temperature(cfg, file, predictor, data)
    check_unknown(predictor, cfg.ood, ood_images, data.splits)
    directory = _result_directory(cfg, file, run, data.fingerprint())
    result, samples = run_split(predictor, data, cfg.split), split_samples(data, cfg.split)
    metadata = _describe(cfg, file, run, settings, predictor) | {
        "data_fingerprint": data.fingerprint(),
        "images_sha256": images_digest(samples, data.class_names),
        **_metrics(predictor, result),
    }
    metadata |= evaluate_unknown(predictor, cfg.ood, ood_images, result, directory) if cfg.ood else {}
    final_test, of_final_test = compare_with_final_test(run, metadata, is_own_data)
    written = write_results(directory, result, metadata, samples)
    print(*summary_lines(result, metadata, final_test), sep="\n")
    if cfg.corrupt is not None:
        chosen, model = (to_plain(cfg.corrupt), cfg.corrupt_samples), {"model_sha256": metadata["model_sha256"]}
        written += write_robustness(directory, model | measure_robustness(chosen, predictor, data, cfg.split, result))
    print(f"\nresults in {short_path(directory)}: {', '.join(written)}")
    print("".join(f"note: {printable_lines(note)}\n" for note in [*notes, *of_final_test] if note), end="")
    if "model" in cfg and run:
        from imago.inference.network_run import finish_network_run  # torch is loaded

        finish_network_run(run, metadata)
    return float(metadata["acc"])


def _fit_temperature(cfg: DictConfig, file: Path, predictor: Predictor, data: "ImageDataModule") -> None:
    entry = calibrate(file, run_split(predictor, data, "val"), cfg.tta)
    print(describe_calibration(entry, cfg.tta), end="\n\n")
    predictor.calibration_temperature = entry[TEMPERATURE_KEY]
    predictor.prediction_sets = read_sets(file, cfg.tta)
    predictor.unknown_detector = read_detector(file, len(predictor.class_names), cfg.tta)


def _write_network_run(cfg: DictConfig) -> Path:
    """Write a run directory for the network that `model` describes; its targets are typed, so they are trusted."""
    problems = list(_problems(cfg))
    problems += [f"run={cfg.run} and model= name two networks; type one of them."] if cfg.run else []
    if problems:
        raise ConfigError("\n".join(problems))
    from imago.inference.network_run import write_network_run  # loads torch

    model, data = to_plain(cfg.model), to_plain(cfg.data)
    cfg.trust = [*cfg.trust, *(str(target) for _, target in targets(model))]
    names, preprocess = to_plain(cfg.class_names), to_plain(cfg.preprocess)
    return write_network_run(Path(cfg.paths.log_dir), model, data | absolute_paths(data), names, preprocess)


def _describe(
    cfg: DictConfig, file: Path, run: Path | None, settings: Mapping[str, Any], predictor: Predictor
) -> dict[str, Any]:
    """Return what metrics.json says about the network, the dataset and the settings."""
    temperature = predictor.calibration_temperature
    return {
        "run": str(run or file.parent),
        "model": str(file.resolve()),
        "model_sha256": sha256_of(file),
        "data": settings["_target_"].rsplit(".", 1)[-1].removesuffix("DataModule"),
        "data_root": settings.get("root"),
        "split": cfg.split,
        "tta": cfg.tta,
        "preprocess": predictor.preprocess.to_dict(),
        **({} if temperature == UNCALIBRATED else {TEMPERATURE_KEY: temperature}),
    }


def _metrics(predictor: Predictor, result: LabeledOutputs) -> dict[str, Any]:
    """Return the scores that eval always computes, and the metrics of the training, which an ONNX file lacks."""
    metrics = result.metrics()
    metrics |= measure_sets(predictor.prediction_sets, result.logits, result.labels, result.class_names, result.groups)
    if isinstance(predictor, TorchPredictor):
        from imago.task.metrics import compute_with_intervals

        metrics |= compute_with_intervals(
            predictor.classifier.metrics, result.logits, result.labels, metrics, draws=result.draws
        )
    return metrics


def _problems(cfg: DictConfig) -> Iterator[str]:
    """Yield one line for each setting that cannot work."""
    if not is_thread_setting(cfg.threads):
        yield f"threads={typed_value(cfg.threads)} must be 1 or more, or auto."
    if "model" in cfg and "data" not in cfg:
        yield "model= needs data that is typed, e.g. data=image_folder data.root=DIR."
    of_model = {"class_names": cfg.class_names} | {f"preprocess.{key}": value for key, value in cfg.preprocess.items()}
    for key, value in of_model.items() if "model" not in cfg else ():
        if value is not None:
            yield f"{key}={value} is a setting of model=NAME; leave it out."
    if cfg.split not in EVALUATED_SPLITS:
        yield f"split={cfg.split} is not one of {', '.join(EVALUATED_SPLITS)}."
    if cfg.tta not in TTA_MODES:
        yield f"tta={cfg.tta} is not one of {', '.join(TTA_MODES)}."
    if cfg.calibrate not in ("auto", "none", "fit"):
        yield f"calibrate={cfg.calibrate} is not one of auto, none, fit."
    if is_onnx(Path(cfg.run or "")):
        if cfg.tta != "none":
            yield f"tta={cfg.tta} needs a checkpoint; run={cfg.run} is an ONNX file, which has one view."
        if cfg.calibrate != "auto":
            yield f"calibrate={cfg.calibrate}: run={cfg.run} is an ONNX file; calibrate its run, export again."
    if cfg.calibrate == "fit" and "data" in cfg:
        yield "calibrate=fit fits on the val images of the run; leave data= out."
    if cfg.ood and cfg.calibrate == "none":
        yield f"ood={cfg.ood} needs what is fitted on val; leave calibrate=none out."
    if cfg.batch_size is not None and cfg.batch_size < 1:
        yield f"batch_size={cfg.batch_size} must be 1 or more."
    yield from robustness_problems(to_plain(cfg.corrupt), cfg.corrupt_samples)
    if Path(cfg.output or "").is_file():
        yield f"output={cfg.output} is a file; type a directory for the results."


def _data_settings(cfg: DictConfig, run: Path | None) -> dict[str, Any]:
    """Return the settings of the typed dataset, else those of the run's own."""
    settings: Any
    if "data" in cfg:
        settings = OmegaConf.to_container(cfg.data, resolve=True)
    elif run is None:
        raise ConfigError(
            f"run={cfg.run} is not in a run directory that names its data; add e.g. data=image_folder data.root=DIR."
        )
    else:
        settings = read_data_settings(run, cfg.trust)
    return settings | ({"batch_size": cfg.batch_size} if cfg.batch_size is not None else {})


def _training_notes(
    cfg: DictConfig, file: Path, run: Path | None, data: "ImageDataModule", is_own_data: bool
) -> Iterator[str]:
    """Yield notes on images that the network may have been trained on, "" for none; errors as in the two functions."""
    yield _compare_with_training(cfg, data, run if is_own_data else None)
    if run is None or _is_foreign(file, run):
        note = f"{file} is not a checkpoint of the run: it may have been trained on these images"
        yield note if is_own_data else ""
    elif "data" in cfg and training_data(run):
        try:
            own: ImageDataModule = build(read_data_settings(run, cfg.trust), _recursive_=False)
            own.set_up_data()
        except UserError as error:
            yield f"whether the run was trained on some of these images is unknown: {error}"
        else:
            yield trained_on_note(split_samples(data, cfg.split), data.class_names, own.splits.train, own.class_names)


def _compare_with_training(cfg: DictConfig, data: "ImageDataModule", own_run: Path | None) -> str:
    """Return a note if the split may contain images that were trained on, or is split off at random.

    `own_run` is the run if these are its own images, else None.

    Raises:
        ConfigError: if the run's own images are split in another way than in training.
    """
    is_random_split = cfg.split in data.random_splits
    if own_run is None:
        if not is_random_split:
            return ""
        num_images, num_all = (len(split_samples(data, split)) for split in (cfg.split, "all"))
        return f"the dataset has no {cfg.split} split: these are {num_images:,} of its {num_all:,}; split=all takes all"
    if read_json(own_run / "provenance.json").get("data") in (None, data.fingerprint()):
        return ""
    if is_random_split and "data" in cfg:
        raise ConfigError(
            f"split={cfg.split} of the run's own images is drawn differently here than in its training: it would "
            "contain images that were trained on. Leave data= out to use the split of the training."
        )
    return (
        "the dataset of the run has changed since training: files were changed, or it is split differently.\n"
        "      Unless the split is a fixed part of it, images that were trained on may be among these."
    )


def _result_directory(cfg: DictConfig, file: Path, run: Path | None, fingerprint: str) -> Path:
    """Create and return `output`, or RUN/eval/SPLIT named by the data, checkpoint and settings of this evaluation.

    Typed data and a network from outside the run have a part of their hash, as others may have the same names.
    """
    from hydra.core.hydra_config import HydraConfig

    name_parts = [cfg.split]
    if "data" in cfg and "model" not in cfg:
        choice = str(HydraConfig.get().runtime.choices["data"])
        root = Path(cfg.data.get("root") or choice).resolve().name[:MAX_NAME_CHARS]
        name_parts += [choice, *([] if root in (choice, "") else [root]), fingerprint[:_NUM_DIGITS]]
    is_foreign = _is_foreign(file, run)
    if file.name != "best.ckpt" or is_foreign:
        name_parts.append(file.stem if file.suffix == ".ckpt" else file.name)
    if is_foreign:
        name_parts.append(sha256_of(file)[:_NUM_DIGITS])
    if cfg.tta != "none":
        name_parts.append(f"tta_{cfg.tta}")
    name_parts += ["uncalibrated"] if cfg.calibrate == "none" else []
    name_parts += [ood_name(cfg.ood)] if cfg.ood else []
    directory = Path(cfg.output or (run or file.parent) / "eval" / "-".join(name_parts))
    make_writable(directory, "output=DIR")
    return directory


def _is_foreign(file: Path, run: Path | None) -> bool:
    own = [(run / name).resolve() for name in ("checkpoints", "export")] if run else [file.parent.resolve()]
    return file.parent.resolve() not in own
