"""`check.py`: look at a data set before training on it: what is bad, twice there, uneven or odd, and how it looks."""

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from imago.data.examine import Examination, examine, examine_array
from imago.dataset_check import contact_sheet, report
from imago.dataset_check.checked_set import CheckedSet
from imago.dataset_check.findings import Finding, find
from imago.errors import ConfigError, DataError, UserError
from imago.files import write_json
from imago.images import Preprocess, resize_and_crop
from imago.instantiate import build
from imago.paths import job_output_dir, short_path
from imago.resources import available_cores

if TYPE_CHECKING:
    from imago.data.datamodule import ImageDataModule
    from imago.data.dataset import Samples

_SHOW = ("all", "augment")
_MAX_ON_SHEETS = 6_400  # images on all sheets together: 64 of each class up to 100 classes, fewer of each for more
_MIN_ON_SHEET = 8
_LISTS = {
    "bad": "bad_files.csv",
    "ignored": "ignored.csv",
    "twins": "duplicates.csv",
    "kept": "split_without_leaks.csv",
}


def check(cfg: DictConfig) -> None:
    """Check the data set that the settings name; everything lands in one folder.

    Raises:
        UserError: for what the user can mend.
        SystemExit: with 1, after all is written, if there is something that a person has to decide.
    """
    _check_settings(cfg)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # what the data set has to tell
    logging.getLogger("imago").setLevel(logging.INFO)
    folder = job_output_dir()
    data = _build(cfg, {})
    checked = None
    if cfg.show == "all":
        checked = gather(data, Path(cfg.data.get("cache_dir") or Path(cfg.paths.data_dir) / "cache"))
    try:
        if checked is None:
            _show_augmentation(data, folder)
            return
        findings = _write_and_tell(cfg, data, checked, folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror}; name another folder, paths.log_dir=DIR."
        ) from error
    if any(finding.is_serious for finding in findings):
        _end_with_findings(sum(finding.is_serious for finding in findings))


def gather(data: "ImageDataModule", cache_dir: Path) -> CheckedSet:
    """Decode every image of a data set, or take what is known of it from an earlier time.

    Args:
        data: after `set_up_data`.
        cache_dir: where results are kept.
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


def draw_sheets(
    checked: CheckedSet, parts: Sequence["Samples"], record: Preprocess
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield for each class the name of a file and a page of its images, uint8 (height, width, 3).

    Args:
        checked: the data set.
        parts: its splits, in the order of `checked.split_names`.
        record: how the images are prepared.
    """
    first = np.cumsum([0, *map(len, parts)])
    num_shown = min(contact_sheet.MAX_IMAGES, max(_MIN_ON_SHEET, _MAX_ON_SHEETS // len(checked.class_names)))

    def square(place: int) -> np.ndarray:
        split = checked.splits[place]
        return resize_and_crop(_pixels(parts[split], place - first[split], checked.class_names), record)

    with ThreadPoolExecutor(available_cores()) as threads:
        for label, name in enumerate(checked.class_names):
            places = checked.good[checked.labels[checked.good] == label]
            if len(places):
                taken = places[np.arange(min(num_shown, len(places))) * len(places) // min(num_shown, len(places))]
                caption = f"{name}: {len(taken)} of {len(places):,} images, cut as for evaluation"
                squares = list(threads.map(square, taken.tolist()))
                yield contact_sheet.sheet_name(label, name), contact_sheet.draw_sheet(squares, caption)


def _check_settings(cfg: DictConfig) -> None:
    if cfg.show not in _SHOW:
        raise ConfigError(f"show={cfg.show} is not one of {', '.join(_SHOW)}.")
    if (job_output_dir() / "check.json").exists():
        raise ConfigError(f"run_name={cfg.run_name}: {job_output_dir()} already holds a check; take another name.")


def _build(cfg: DictConfig, changes: dict[str, Any]) -> "ImageDataModule":
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    data: ImageDataModule = build(settings | changes, extra_targets=cfg.extra_targets)
    data.set_up_data()
    return data


def _show_augmentation(data: Any, folder: Path) -> None:
    from imago.data.image_grid import draw_augmentations

    _save_image(folder / "augment.png", draw_augmentations(data))
    print(
        "each row is a training image as evaluated, then as 8 epochs would show it: "
        f"{short_path(folder / 'augment.png')}"
    )


def _examine(part: "Samples", cache_dir: Path) -> Examination:
    from imago.data.dataset import LabeledFiles

    if not isinstance(part, LabeledFiles):
        return examine_array(part.images)
    return examine(part.root, part.names, part.num_bytes, part.mtime_ns, cache_dir, available_cores())


def _pixels(part: "Samples", index: int, class_names: Sequence[str]) -> np.ndarray:
    from imago.data.dataset import LabeledFiles

    return part.read(index, class_names) if isinstance(part, LabeledFiles) else part.images[index].transpose(1, 2, 0)


def _write_and_tell(cfg: DictConfig, data: "ImageDataModule", checked: CheckedSet, folder: Path) -> list[Finding]:
    """Write everything, print what matters, and give the findings."""
    ignored, left_out = list(data.ignored), list(getattr(data, "bad", []))
    report.write_bad_files(folder / _LISTS["bad"], checked, left_out)
    report.write_csv(folder / _LISTS["ignored"], [("path", "reason"), *ignored])
    if not checked.counts[:, 0].any():
        raise DataError(f"no training image can be read; see {short_path(folder / _LISTS['bad'])}.")
    print("\n".join(report.class_table(checked)), end="\n\n")
    record, told = _record(cfg, data, checked)
    print("\n".join(report.fact_lines(checked, ignored, told)), end="\n\n")
    findings = find(checked, len(ignored), len(left_out))
    report.write_duplicates(folder / _LISTS["twins"], checked)
    _write_split_without_leaks(folder / _LISTS["kept"], checked)
    facts = {"data": cfg.data._target_, "root": cfg.data.get("root"), "data_fingerprint": data.fingerprint()}
    own = {"preprocess": record.to_dict() if record else None}
    write_json(folder / "check.json", facts | report.as_json(checked, findings) | own)
    if record:
        (folder / "contact_sheets").mkdir()
        for name, page in draw_sheets(checked, [part for _, part in data.splits.named()], record):
            _save_image(folder / "contact_sheets" / name, page)
    print("\n".join(report.finding_lines(findings)), end="\n\n")
    print(f"results in {short_path(folder)}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print("\n".join(_next_commands(folder, is_leaking=(folder / _LISTS["kept"]).exists())))
    return findings


def _record(cfg: DictConfig, data: "ImageDataModule", checked: CheckedSet) -> tuple[Preprocess | None, str]:
    """Give how a run prepares the images, and the same in words; None where bad images keep it from being known."""
    if not len(checked.bad):
        return data.preprocess, data.preprocess.describe()
    try:
        record = _build(cfg, {"on_bad_image": "skip"}).preprocess
    except UserError as error:
        return None, f"not known, and no contact sheets: {error}"
    return record, f"{record.describe()} (with data.on_bad_image=skip)"


def _write_split_without_leaks(path: Path, checked: CheckedSet) -> None:
    from imago.data.csv_list import write_list

    kept = checked.without_leaks()
    if len(kept) == len(checked.good) or not checked.can_leave_leaks_out:
        return
    parts = {}
    for number, split in enumerate(checked.split_names):
        places = kept[checked.splits[kept] == number]
        parts[split] = ([checked.names[place] for place in places], checked.labels[places])
    write_list(path, checked.class_names, parts)


_TYPED = ("data=", "data.", "augment", "preprocess", "paths.data_dir=", "extra_targets")  # what a run needs, too


def _next_commands(folder: Path, is_leaking: bool) -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    typed = [text for text in HydraConfig.get().overrides.task if text.startswith(_TYPED)]
    arguments = [shlex.quote(_unquoted(text)) for text in typed]
    commands = [["python src/check.py", *arguments, "show=augment"], ["python src/train.py", *arguments]]
    if is_leaking:
        kept = shlex.quote(f"data.split_file={short_path(folder / _LISTS['kept'])}")
        commands.append(["python src/train.py", *arguments, kept])
    return ["next:", *(f"  {' '.join(command)}" for command in commands)]


def _unquoted(override: str) -> str:
    """Give an override as it was typed: values that are paths were quoted for Hydra."""
    key, _, value = override.partition("=")
    return f"{key}={value[1:-1]}" if value[:1] == '"' and "\\" not in value else override


def _save_image(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def _end_with_findings(num_serious: int) -> NoReturn:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    message = f"{num_serious} of the findings (marked !) need a decision before training"
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # an exit would end the whole sweep
        raise DataError(message)
    print(message, file=sys.stderr)
    raise SystemExit(1)
