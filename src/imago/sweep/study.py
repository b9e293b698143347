"""Create or open the Optuna study of a sweep, which several processes may share."""

import hashlib
import json
import math
import random
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from imago.errors import ConfigError, DataError
from imago.instantiate import build
from imago.sweep.space import Space
from imago.system import IS_POSIX
from imago.text import first_line

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)  # of a database
_SAMPLERS = {
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
}
_PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0),  # keeps the best quarter, as Optuna's example
}
REPEATS = "repeats"  # attribute of a trial: the number of an earlier one with the same values
_GRID_SAMPLERS = ("BruteForceSampler", "GridSampler")  # they stop a study in a way that its own loop only knows
_NUM_TRIES = 5  # to create the tables of a database that others create now; our own choice
_MAX_WAIT_S = 30  # to queue a grid takes less; our own choice

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the ranking says what the trials were
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def is_of_a_machine(override: str) -> bool:
    """Return whether an override may differ between the machines of a sweep."""
    return override.lstrip("+").startswith("paths.")


def open_study(directory: Path, settings: Mapping[str, Any], space: Space, is_continued: bool = True) -> optuna.Study:
    """Create the study of a sweep, or open it if it exists and `is_continued`.

    A grid is queued once, by the process that creates the study.

    Raises:
        ConfigError: if the study searches another space, or exists and is not to be continued.
        DataError: if the storage cannot be used.
    """
    pruner = _build("pruner", settings["pruner"], _PRUNERS)
    searched = {
        "settings": sorted(text for text in space.fixed if not is_of_a_machine(text)),
        "values": [parameter.text for parameter in space.parameters],
        "repetitions": [" ".join(repeat) for repeat in space.repeats],
        "objective": [settings["objective"], settings["direction"]],
        "kind of search": ["grid" if settings["sampler"] == "grid" else "sampler"],
    }
    grid = list(space.combinations()) if settings["sampler"] == "grid" else []
    try:
        storage = _open_storage(settings["storage"], directory)
        study = optuna.create_study(
            storage=storage, study_name=directory.name, direction=settings["direction"], pruner=pruner
        )
        is_new = is_created = True
    except optuna.exceptions.DuplicatedStudyError:
        if not is_continued:
            raise ConfigError(
                f"sweep.storage={settings['storage']} already holds a sweep {directory.name}: type resume=auto to "
                "continue it, or another sweep_name."
            ) from None
        study = optuna.load_study(storage=storage, study_name=directory.name, pruner=pruner)
        is_new, is_created = not _is_filled(study), False
    except json.JSONDecodeError as error:
        journal = directory / "study.journal"
        raise DataError(
            f"{journal}, line {_damaged_line(journal)} is damaged, as by a full disk ({error}): remove this line, and "
            "repeat the command."
        ) from error
    if is_new:
        for values in grid:
            study.enqueue_trial(values, skip_if_exists=not is_created)
        study.set_user_attr("searched", searched)
    _check_unchanged(study.user_attrs["searched"], searched, directory)
    return study


def _damaged_line(journal: Path) -> int:
    """Return the number of the first line that is not JSON, from 1."""
    for number, line in enumerate(journal.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            return number
    return 0


def _is_filled(study: optuna.Study) -> bool:
    """Wait until the process that has created a study has queued its grid; return False if it has died before."""
    for _ in range(_MAX_WAIT_S):
        if "searched" in study.user_attrs:
            return True
        time.sleep(1.0)
    return False


def num_to_start(study: optuna.Study, settings: Mapping[str, Any]) -> float:
    """Return how many more trials may be started: of `n_trials` in total, or of the queued grid."""
    trials = study.get_trials(deepcopy=False)
    num_started = sum(trial.state != TrialState.WAITING and REPEATS not in trial.user_attrs for trial in trials)
    num_trials = settings["n_trials"] or math.inf
    return min(num_trials, len(trials) if settings["sampler"] == "grid" else math.inf) - num_started


def set_sampler(study: optuna.Study, settings: Mapping[str, Any], number: int, name: str = "") -> None:
    """Set a sampler whose seed depends on the trial and the name of the parameter only.

    So an interrupted sweep goes on alike.
    """
    if settings["sampler"] != "grid":  # values of a grid are queued
        digest = hashlib.sha256(f"{settings['seed']} {number} {name}".encode()).digest()
        study.sampler = _build("sampler", settings["sampler"], _SAMPLERS, seed=int.from_bytes(digest[:4]))


def check_names(settings: Mapping[str, Any]) -> None:
    """Check the names of the sampler and the pruner, and build both.

    Raises:
        ConfigError: for a name that is not known, or arguments that do not fit.
    """
    for key, known in (("sampler", ("grid", *_SAMPLERS)), ("pruner", (*_PRUNERS,))):
        if not isinstance(settings[key], Mapping) and settings[key] not in known:
            raise ConfigError(
                f"sweep.{key}={settings[key]} is not one of {', '.join(known)}, or a _target_ with its arguments."
            )
        if isinstance(settings[key], Mapping) and str(settings[key].get("_target_")).endswith(_GRID_SAMPLERS):
            raise ConfigError(f"sweep.{key}={settings[key]['_target_']}: type sweep=grid, which tries every value.")
    _build("pruner", settings["pruner"], _PRUNERS)
    if settings["sampler"] != "grid":
        _build("sampler", settings["sampler"], _SAMPLERS, seed=0)


def _build(key: str, choice: Any, known: Mapping[str, Any], **arguments: Any) -> Any:
    """Build the sampler or pruner of a name, or of a `_target_` with its arguments."""
    if not isinstance(choice, Mapping):
        return known[choice](**arguments)
    try:
        return build(choice, **arguments)
    except (TypeError, ValueError) as error:  # of its constructor, about its arguments
        raise ConfigError(f"sweep.{key}={choice['_target_']}: {' '.join(str(error).split())}") from error


def _open_storage(url: str | None, directory: Path) -> BaseStorage:
    if url is None:
        file = str(directory / "study.journal")
        lock = None if IS_POSIX else JournalFileOpenLock(file)  # the default lock is a symbolic link
        return JournalStorage(JournalFileBackend(file, lock))
    for attempt in range(_NUM_TRIES):
        try:
            return RDBStorage(url)
        except (ImportError, *STORAGE_ERRORS) as error:
            is_being_created = any(text in str(error) for text in ("already exists", "UNIQUE", "duplicate", "locked"))
            if not is_being_created or attempt == _NUM_TRIES - 1:
                raise DataError(f"sweep.storage={url} cannot be opened: {first_line(error)}") from error
        time.sleep(1.0 + random.random())
    raise AssertionError("the last attempt returns or raises")


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    for name in now:
        if before.get(name) != now[name]:
            old, new = (
                ", ".join(value for value in a if value not in b) or "none"
                for a, b in ((before.get(name, ()), now[name]), (now[name], before.get(name, ())))
            )
            raise ConfigError(
                f"{directory} is a sweep with other {name} ({old}; now {new}): type its command again, or choose "
                "another sweep_name."
            )
