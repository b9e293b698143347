"""Add the saved settings of a run to a command line with `resume=RUN`, and check them: they may be untrusted."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imago.errors import ConfigError, DataError
from imago.files import read_json
from imago.instantiate import targets
from imago.paths import CONFIG_DIR, checkpoint_file, quote_for_hydra
from imago.settings import flatten

_PLAIN_CHOICE = re.compile(r"[\w\-]+(/[\w\-]+)*")  # of a YAML in configs/: no path that leads out of it
_OUTPUT_KEYS = ("path", "dirpath", "save_dir", "default_root_dir", "cache_dir")  # written to


class Arguments(NamedTuple):
    """Command line of a run that may be resumed."""

    merged: list[str]  # flags, then one argument per setting, for Hydra
    saved: list[str]  # the settings among them that come from the run directory, which may be untrusted


def resume_arguments(argv: Sequence[str], log_dir: Path) -> Arguments:
    """Put the settings that RUN was started with before the typed ones, and keep its run directory.

    Path-like values in `argv` are quoted for Hydra. `run_name=NAME resume=auto` searches for NAME in the typed
    paths.log_dir, else in `log_dir`.

    Raises:
        ConfigError: if RUN is not a run directory, or if `resume=auto` comes without a run_name.
        DataError: if the saved command line has anything else than settings of a run.
    """
    typed = {override_key(argument): argument for argument in argv if "=" in argument}
    if typed.get("resume") == "resume=":
        raise ConfigError("resume= has no value; type a run directory, e.g. resume=logs/latest.")
    resume = _value(typed, "resume")
    if resume is None:
        return Arguments(list(argv), [])
    run_dir = _named_directory(typed, log_dir) if resume == "auto" else Path(resume).resolve()
    if resume == "auto" and not checkpoint_file(run_dir, "last").is_file():
        return Arguments(list(argv), [])  # it is new, or ended before its first checkpoint: start in the same directory
    provenance = run_dir / "provenance.json"
    overrides = read_json(provenance).get("overrides")
    if not isinstance(overrides, list):
        fault = "is not a run directory: it has no readable provenance.json" if run_dir.exists() else "does not exist"
        raise ConfigError(f"resume={resume} {fault}; type a run directory, e.g. resume=logs/latest.")
    directory = [f"{key}={quote_for_hydra(str(run_dir))}" for key in ("resume", "hydra.run.dir")]
    # `resume` and `trust` of an earlier resume are not repeated: trust is typed by the user, never read from a file.
    overrides = [str(override) for override in overrides if override_key(str(override)) not in ("resume", "trust")]
    _check_saved(overrides, provenance)
    merged: dict[str, str] = {}
    for argument in [*overrides, *typed.values(), *directory]:
        key = override_key(argument)
        # A key that the run added (+callbacks.mine=...) must be added again, whether or not the + is typed again.
        is_added = merged.get(key, "").startswith("+") and not argument.startswith("+")
        merged[key] = f"+{argument}" if is_added else argument
    saved = [argument for argument in overrides if merged[override_key(argument)] == argument]
    return Arguments([*(argument for argument in argv if "=" not in argument), *merged.values()], saved)


def _check_saved(overrides: Sequence[str], source: Path) -> None:
    """Check that saved overrides are settings, none of them Hydra's own or a file outside `configs/`."""
    for override in overrides:
        key, equals, value = override.partition("=")
        names = re.split(r"[.@/]", key.lstrip("+~"))
        # No flag such as --config-dir=DIR, and no path that leads out of configs/.
        is_setting = re.fullmatch(r"(~|\+{0,2})\w[\w\-]*([.@/]\w[\w\-]*)*", key) and (equals or key.startswith("~"))
        if not is_setting or {"hydra", "trust", "resume"} & {*names}:
            raise DataError(
                f"{source}: {override!r} is not a setting of a run; it was changed after saving. Start a new run."
            )
        if is_group_choice(override):
            options = [option.strip() for option in value.strip("[]").split(",")]
            if not all(_PLAIN_CHOICE.fullmatch(option) for option in options if option):
                raise DataError(f"{source}: {override!r} names no file in configs/; it was changed after saving.")
        if re.search(r"\$\{.*:", value, re.DOTALL):  # a resolver, such as ${oc.env:NAME} or ${oc.${x}:NAME}
            raise DataError(f"{source}: {override!r} reads something outside the run; type it again to use it.")


def is_group_choice(override: str) -> bool:
    """Return whether an override chooses a YAML of a config group, such as `model=resnet18`."""
    key, _, value = override.partition("=")
    return (CONFIG_DIR / key.lstrip("+~").partition("@")[0]).is_dir() and not value.startswith("{")


def check_saved_settings(
    config: Mapping[str, Any], own: Mapping[str, Any], run_dir: Path, trust: Sequence[str]
) -> None:
    """Check the settings that a resumed run reads from its directory: their names and their targets.

    `own` has the settings of `config` without the values from the run directory: only those that are typed or written
    in `configs/`. Targets in the packages `trust` are accepted.

    Raises:
        DataError: a setting that this project does not have.
        ConfigError: one line for each target that is refused.
    """
    source = run_dir / "provenance.json"
    if unknown := sorted(set(config) - set(own)):
        raise DataError(f"{source}: there is no setting {unknown[0]!r}; type +{unknown[0]}=VALUE again, or remove it.")
    known = {str(name) for key, node in own.items() if key != "hydra" for _, name in targets(node)}
    if any(str(name) not in known for _, name in targets(config)):
        from imago.trust import check_saved_targets

        for group, node in config.items():
            check_saved_targets(node, group, source, trust, known)


def check_saved_outputs(config: Mapping[str, Any], own: Mapping[str, Any], run_dir: Path) -> None:
    """Check that callbacks and loggers of a resumed run write below its directory, unless a path is typed now.

    `config` holds all settings and `own` those that do not come from the run directory, both unresolved.

    Raises:
        DataError: naming the setting.
    """
    groups = {group: config.get(group) for group in ("logger", "callbacks", "trainer")}
    for key, value in flatten(groups).items():
        if key.rpartition(".")[2] not in _OUTPUT_KEYS or value is None or value == flatten(own).get(key):
            continue
        path = Path(str(value).replace("${paths.run_dir}", str(run_dir))).resolve()
        if "${" in str(path) or not path.is_relative_to(run_dir.resolve()):
            raise DataError(
                f"{run_dir / 'provenance.json'}: {key}={value} is outside the run directory; type it again to use it."
            )


def _named_directory(typed: Mapping[str, str], log_dir: Path) -> Path:
    """Return the run directory that `run_name=NAME resume=auto` continues or starts."""
    name = _value(typed, "run_name")
    if name is None:
        raise ConfigError("resume=auto needs run_name=NAME, the run to continue or to start.")
    return Path(_value(typed, "paths.log_dir") or log_dir) / "train" / name


def override_key(argument: str) -> str:
    """Return the key of an override, such as `optimizer.lr` of `+optimizer.lr=0.1`."""
    return argument.partition("=")[0].lstrip("+")


def _value(typed: Mapping[str, str], key: str) -> str | None:
    """Return the typed value of a key without its quotes; None if it is absent, empty or null."""
    if key not in typed:
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(typed[key]).value()
    return None if value in (None, "") else str(value)
