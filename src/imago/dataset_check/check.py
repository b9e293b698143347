"""`check.py`: report damaged, duplicate, unbalanced and unusual images of a data set before a training run."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from imago.data.examine import Examination, examine, examine_array
from imago.dataset_check import report
from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import find
from imago.errors import ConfigError, DataError, UserError
from imago.files import write_csv, write_json
from imago.images import Preprocess
from imago.instantiate import build
from imago.log import log_to
from imago.paths import job_output_dir, short_path
from imago.resources import available_cores

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

_SHOW = ("all", "augment")
_BAD_IMAGES, _SPLIT_FILE = "bad_images.csv", "split_without_leaks.csv"
_DATA_SETTINGS = ("data=", "data.", "augment", "preprocess", "paths.data_dir=", "extra_targets")  # a run needs them too


@log_to()
def check(cfg: DictConfig) -> None:
    """Check the data set that the settings name, and write the results to the output directory of the job.

    Raises:
        UserError: for a problem that the user can fix.
        SystemExit: with code 1, after everything is written, if a finding needs a decision.
    """
    folder = job_output_dir()
    if cfg.show not in _SHOW:
        raise ConfigError(f"show={cfg.show} is not one of {', '.join(_SHOW)}.")
    if (folder / "check.json").exists():
        raise ConfigError(f"run_name={cfg.run_name}: {folder} already holds a check; choose another name.")
    data = _build(cfg)
    cache_dir = Path(cfg.data.get("cache_dir") or Path(cfg.paths.data_dir) / "cache")
    checked = gather(data, cache_dir) if cfg.show == "all" else None
    try:
        if checked is None:
            _write_augmentations(data, folder)
            return
        num_serious = _write_report(cfg, data, checked, folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror}; choose another folder with paths.log_dir=DIR."
        ) from error
    if num_serious:
        _exit_with_findings(num_serious)


def gather(data: "ImageDataModule", cache_dir: Path) -> CheckedSet:
    """Examine every image of a data set, or take its result from an earlier examination.

    Args:
        data: after `set_up_data`.
        cache_dir: directory of the results.
    """
    parts = data.splits.named()
    examined = [_examine(part, cache_dir) for _, part in parts]
    return CheckedSet(
        data.class_names,
        tuple(split for split, _ in parts),
        tuple(name for _, part in parts for name in part.names),
        np.repeat(np.arange(len(parts)), [len(part) for _, part in parts]),
        np.concatenate([part.labels for _, part in parts]),
        Examination(
            np.concatenate([one.records for one in examined]), tuple(error for one in examined for error in one.errors)
        ),
    )


def _build(cfg: DictConfig, **changes: Any) -> "ImageDataModule":
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    data: ImageDataModule = build(settings | changes, extra_targets=cfg.extra_targets)
    data.set_up_data()
    return data


def _examine(part: "Samples", cache_dir: Path) -> Examination:
    from imago.data.dataset import LabeledFiles

    if not isinstance(part, LabeledFiles):
        return examine_array(part.images)
    return examine(part.root, part.names, part.num_bytes, part.mtime_ns, cache_dir, available_cores())


def _write_augmentations(data: "ImageDataModule", folder: Path) -> None:
    from imago.dataset_check.pages import draw_augmentations

    file = folder / "augment.png"
    Image.fromarray(draw_augmentations(data)).save(file)
    print(f"each row is a training image as evaluated, then as 8 epochs would show it: {short_path(file)}")


def _write_report(cfg: DictConfig, data: "ImageDataModule", checked: CheckedSet, folder: Path) -> int:
    """Write all files, print the report, and return the number of serious findings."""
    ignored, left_out = data.ignored, data.bad
    report.write_bad_images(folder / _BAD_IMAGES, checked, left_out)
    write_csv(folder / "ignored.csv", [("path", "reason"), *ignored])
    if not checked.counts[:, 0].any():
        raise DataError(f"no training image can be read; see {short_path(folder / _BAD_IMAGES)}.")
    print("\n".join(report.class_table(checked)), end="\n\n")
    preprocess, description = _preprocess(cfg, data, checked)
    print("\n".join(report.summary_lines(checked, ignored, description)), end="\n\n")
    findings = find(checked, len(ignored), len(left_out))
    report.write_duplicates(folder / "duplicates.csv", checked)
    is_leaking = _write_split_without_leaks(folder / _SPLIT_FILE, checked)
    source = {"data": cfg.data._target_, "root": cfg.data.get("root"), "data_fingerprint": data.fingerprint()}
    prepared = {"preprocess": preprocess.to_dict() if preprocess else None}
    write_json(folder / "check.json", source | report.as_json(checked, findings) | prepared)
    if preprocess:
        _write_contact_sheets(data, checked, preprocess, folder / "contact_sheets")
    print("\n".join(report.finding_lines(findings)), end="\n\n")
    print(f"results in {short_path(folder)}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print("\n".join(_next_commands(folder / _SPLIT_FILE if is_leaking else None)))
    return sum(finding.is_serious for finding in findings)


def _preprocess(cfg: DictConfig, data: "ImageDataModule", checked: CheckedSet) -> tuple[Preprocess | None, str]:
    """Return the preprocessing of a run and its description; None if bad images prevent computing it."""
    if not len(checked.bad):
        return data.preprocess, data.preprocess.describe()
    try:
        preprocess = _build(cfg, on_bad_image="skip").preprocess
    except UserError as error:
        return None, f"unknown, and no contact sheets: {error}"
    return preprocess, f"{preprocess.describe()} (with data.on_bad_image=skip)"


def _write_contact_sheets(data: "ImageDataModule", checked: CheckedSet, preprocess: Preprocess, folder: Path) -> None:
    from imago.dataset_check.pages import draw_sheets

    folder.mkdir()
    for name, page in draw_sheets(checked, [part for _, part in data.splits.named()], preprocess):
        Image.fromarray(page).save(folder / name)


def _write_split_without_leaks(path: Path, checked: CheckedSet) -> bool:
    """Write a split file without the leaked images, if there are any and every class keeps a training image."""
    from imago.data.csv_list import write_list

    kept = checked.without_leaks()
    if len(kept) == len(checked.good) or not checked.can_leave_leaks_out:
        return False
    parts = {}
    for number, split in enumerate(checked.split_names):
        indices = kept[checked.splits[kept] == number]
        parts[split] = ([checked.names[index] for index in indices], checked.labels[indices])
    write_list(path, checked.class_names, parts)
    return True


def _next_commands(split_file: Path | None) -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    arguments = [_unquoted(text) for text in HydraConfig.get().overrides.task if text.startswith(_DATA_SETTINGS)]
    commands = [["src/check.py", *arguments, "show=augment"], ["src/train.py", *arguments]]
    if split_file:
        commands.append(["src/train.py", *arguments, f"data.split_file={short_path(split_file)}"])
    return ["next:", *(f"  {shlex.join(['python', *command])}" for command in commands)]


def _unquoted(override: str) -> str:
    """Return an override as it was typed: values that are paths were quoted for Hydra."""
    key, _, value = override.partition("=")
    return f"{key}={value[1:-1]}" if value[:1] == '"' and "\\" not in value else override


def _exit_with_findings(num_serious: int) -> NoReturn:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    message = f"{num_serious} of the findings (marked !) need a decision before training"
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # an exit would end the whole sweep
        raise DataError(message)
    print(message, file=sys.stderr)
    raise SystemExit(1)
