"""`check.py`: report damaged, duplicate, unbalanced and unusual images of a dataset before a training run."""

import logging
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from imago.data.examine import Examination, examine
from imago.data.image_record import examine_pixels
from imago.dataset_check import report
from imago.dataset_check.checked_dataset import CheckedDataset
from imago.dataset_check.findings import list_findings
from imago.dataset_check.labels import check_labels
from imago.dataset_check.pages import draw_augmentations, draw_sheets
from imago.errors import ConfigError, DataError, IncompleteError, UserError
from imago.files import report_unwritable, write_csv, write_json
from imago.images import MAX_SMALL_PX, write_png
from imago.instantiate import build
from imago.log import log_to
from imago.paths import command, job_output_dir, short_path
from imago.text import counted

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

_SHOW_CHOICES = ("all", "augment")
_DATA_SETTINGS = ("data=", "data.", "augment", "preprocess", "paths.data_dir=")  # also for train.py


@log_to()
def check(cfg: DictConfig) -> None:
    """Check the dataset that the settings name, and write the results to the output directory of the job.

    Raises:
        UserError: for a problem that the user can fix; after everything is written, if a finding needs a decision.
    """
    directory = job_output_dir()
    if cfg.show not in _SHOW_CHOICES:
        raise ConfigError(f"show={cfg.show} is not one of {', '.join(_SHOW_CHOICES)}.")
    if any((directory / name).exists() for name in ("check.json", "label_issues.csv")):
        raise ConfigError(f"run_name={cfg.run_name}: {directory} already holds a check; choose another name.")
    if cfg.labels:
        with report_unwritable(directory, "; choose another directory with paths.log_dir=DIR"):
            check_labels(Path(cfg.labels), directory, list(cfg.trust))
        return
    cache_dir = Path(cfg.data.get("cache_dir") or Path(cfg.paths.data_dir) / "cache")
    try:
        data = _build_data(cfg)
    except DataError:
        _list_bad_images(cfg, cache_dir, directory)
        raise
    grouping = data.split_plan.grouping
    checked = examine_dataset(data, cache_dir, grouping) if cfg.show == "all" else None
    with report_unwritable(directory, "; choose another directory with paths.log_dir=DIR"):
        if checked is None:
            write_png(directory / "augment.png", draw_augmentations(data))
            file = short_path(directory / "augment.png")
            print(f"each row shows a training image as evaluated, then as augmented in 8 epochs: {file}")
            return
        num_serious = _write_report(cfg, data, checked, directory)
    if num_serious:
        findings = counted(num_serious, "finding (marked !) needs", "findings (marked !) need")
        raise IncompleteError(f"{findings} a decision before training")


def examine_dataset(data: "ImageDataModule", cache_dir: Path, grouping: str = "") -> CheckedDataset:
    """Examine every image of a dataset after `set_up_data`, or reuse an earlier result in `cache_dir`.

    `grouping` is the setting that defines groups, as typed.
    """
    samples = [split for _, split in data.splits.items()]
    examined = [_examine(split, cache_dir) for split in samples]
    errors = tuple(error for part in examined for error in part.errors)
    groups = [split.groups for split in samples if split.groups is not None]
    return CheckedDataset(
        data.class_names,
        tuple(name for split in samples for name in split.names),
        np.repeat(np.arange(len(samples)), [len(split) for split in samples]),
        np.concatenate([split.labels for split in samples]),
        Examination(np.concatenate([part.records for part in examined]), errors),
        np.concatenate(groups) if groups else None,
        grouping,
    )


def _build_data(cfg: DictConfig, only: str | None = None, **changes: Any) -> "ImageDataModule":
    """Build and set up the data; with `only` or changed settings once more, without logging the same again."""
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    if "train_fraction" in settings:
        settings["train_fraction"] = 1.0  # a leak in the other part would be trained on with a larger one
    data: ImageDataModule = build(settings | changes, _recursive_=False)
    logging.disable(logging.WARNING if only or changes else logging.NOTSET)
    try:
        data.set_up_data(only)
    finally:
        logging.disable(logging.NOTSET)
    return data


def _list_bad_images(cfg: DictConfig, cache_dir: Path, directory: Path) -> None:
    """Write and print the images that cannot be read of a dataset that cannot be trained on, as a class is empty."""
    with suppress(UserError):
        checked = examine_dataset(_build_data(cfg, "all"), cache_dir)
        if len(checked.bad_indices):
            report.write_bad_images(directory / "bad_images.csv", checked, [])
            print("\n".join(report.finding_lines(list_findings(checked, 0, 0)[:1])))
            print(f"\nresults in {short_path(directory)}: bad_images.csv")


def _examine(samples: "Samples", cache_dir: Path) -> Examination:
    from imago.data.dataset import LabeledFiles

    if not isinstance(samples, LabeledFiles):
        images = (samples.read(index) for index in range(len(samples)))
        return Examination(examine_pixels(images, len(samples)), ("",) * len(samples))
    return examine(samples, cache_dir)


def _write_report(cfg: DictConfig, data: "ImageDataModule", checked: CheckedDataset, directory: Path) -> int:
    """Write all files, print the report, and return the number of serious findings."""
    report.write_bad_images(directory / "bad_images.csv", checked, data.bad_images)
    write_csv(directory / "ignored.csv", [("path", "reason"), *data.ignored_entries])
    if not checked.counts[:, 0].any():
        raise DataError(f"no training image can be read; see {short_path(directory / 'bad_images.csv')}.")
    print("\n".join(report.class_table(checked)), end="\n\n")
    try:  # that of a run, which leaves bad images out
        preprocess = (_build_data(cfg, on_bad_image="skip") if len(checked.bad_indices) else data).preprocess
        description = preprocess.describe()
    except UserError as error:
        preprocess, description = None, f"unknown, and no contact sheets: {error}"
    print("\n".join(report.summary_lines(checked, description)), end="\n\n")
    findings = list_findings(checked, len(data.ignored_entries), len(data.bad_images))
    report.write_duplicates(directory / "duplicates.csv", checked)
    if checked.has_leaks and checked.can_remove_leaks:
        rows = [(name, label, split) for name, split, label in map(checked.origin, checked.without_leaks)]
        write_csv(directory / "split_without_leaks.csv", [("path", "label", "split"), *rows])
    source = {"data": cfg.data._target_, "root": cfg.data.get("root"), "data_fingerprint": data.fingerprint()}
    prepared = {"preprocess": preprocess.to_dict() if preprocess else None}
    write_json(directory / "check.json", source | report.as_json(checked, findings) | prepared)
    if preprocess:
        (directory / "contact_sheets").mkdir()
        for name, page in draw_sheets(checked, [split for _, split in data.splits.items()], preprocess):
            write_png(directory / "contact_sheets" / name, page)
    print("\n".join(report.finding_lines(findings)), end="\n\n")
    print(f"results in {short_path(directory)}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    split_file, size_px = directory / "split_without_leaks.csv", preprocess.size if preprocess else 0
    print("\n".join(_next_commands(split_file, bool(len(checked.bad_indices)), size_px)))
    return sum(finding.is_serious for finding in findings)


def _next_commands(split_file: Path, has_bad_images: bool, size_px: int) -> list[str]:
    """Return the commands to type next, with the data settings of this one; they leave bad images out."""
    from hydra.core.hydra_config import HydraConfig

    settings = [text for text in HydraConfig.get().overrides.task if text.lstrip("+").startswith(_DATA_SETTINGS)]
    if has_bad_images:
        settings = [text for text in settings if "on_bad_image=" not in text] + ["data.on_bad_image=skip"]
    recipe = [] if size_px <= MAX_SMALL_PX else ["experiment=finetune_folder"]  # photographs
    commands = [("check", [*settings, "show=augment"]), ("train", [*recipe, *settings])]
    if split_file.exists():
        settings = [text for text in settings if "val_as_test=" not in text]  # the list has the test split
        commands.append(("train", [*recipe, *settings, f"data.split_file={short_path(split_file)}"]))
    return ["next:", *(f"  {command(script)} {shlex.join(typed)}" for script, typed in commands)]
