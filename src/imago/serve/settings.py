"""Read the settings of the service: `configs/serve.yaml`, a file of the user, and the command line."""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from imago.errors import ConfigError, DataError
from imago.paths import CONFIG_DIR, command
from imago.resources import available_cores
from imago.text import join_names, printable

DEFAULTS = CONFIG_DIR / "serve.yaml"
_VERSION = "v1"  # of a model that is typed without one
_SOURCES = ("model", "config")  # of `Settings.models`
_TEXTS = (*_SOURCES, "host")  # typed as they are; any other value is read as YAML
_SMALLEST = {"port": 0, "threshold": 0, "max_wait_ms": 0, "decoder_memory_mb": 512}  # of others: above 0
_LARGEST = {"port": 65535, "threshold": 1}


@dataclass(frozen=True)
class Settings:
    """All settings by the names of `configs/serve.yaml`, which explains them.

    Attributes:
        models: name -> version -> ONNX file, in the order typed; requests that name no model are for the first one.
        weights: name -> version -> its share of the requests that name no version; they add up to 1.
    """

    models: dict[str, dict[str, Path]]
    weights: dict[str, dict[str, float]]
    host: str
    port: int
    threads: int
    threads_per_batch: int
    threshold: float
    max_batch: int
    max_wait_ms: float
    max_body_mb: int
    max_pixels: int
    max_files: int
    max_requests: int
    max_queue: int
    body_timeout_s: float
    stop_timeout_s: float
    decoders: int
    decoder_memory_mb: int
    decoder_cpu_s: int
    decoder_timeout_s: float
    access_log: bool


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read the settings of a command line; the file that `config=` names is read again by each call.

    Raises:
        ConfigError: a setting that is unknown or cannot work, as typed.
        DataError: the file of the settings cannot be read.
    """
    defaults = _read_yaml(DEFAULTS)
    typed = dict(_parse(text, defaults) for text in arguments)
    listed: dict[str, Any] = {}
    if typed.get("config"):
        file = Path(typed["config"]).expanduser()
        listed = _read_yaml(file)
        for key in listed:
            known = [name for name in (*defaults, "models", "weights") if name != "config"]
            _check_key(key, known, f"{printable(file)}: {key}")
        if listed.get("model") and listed.get("models"):
            raise ConfigError(f"{printable(file)}: model and models are set; list all under models.")
    models = _typed_models(typed.get("model") or listed.get("model"))
    if not models and listed.get("models"):
        models = _listed_models(listed["models"], file)
    if not models:
        raise ConfigError("model is not set; type model=RUN or model=FILE.onnx, e.g. model=logs/latest.")
    values = defaults | {key: value for key, value in listed.items() if key in defaults} | typed
    checked = {key: _checked(key, value, defaults[key]) for key, value in values.items() if key not in _SOURCES}
    if checked["max_files"] > checked["max_queue"]:
        fault = "max_files={max_files} is more than max_queue={max_queue}, the images that may wait; type fewer."
        raise ConfigError(fault.format(**checked))
    weights = {} if typed.get("model") else listed.get("weights") or {}  # those of the models of the file
    return Settings(models, _weights(models, weights), **checked)


def check_files(settings: Settings) -> None:
    """Raise a `DataError` for the first model without a file, before anything is started."""
    for file in (file for versions in settings.models.values() for file in versions.values()):
        if not os.path.isfile(file):  # Path's method fails for names that are too long
            run = file.parent.parent
            remedy = "model= is a directory of a run or an ONNX file"
            if file.name == "model.onnx" and (run / "config.yaml").is_file():
                remedy = f"the run is not exported yet, type {command('export')} run={printable(run)}"
            raise DataError(f"{printable(file)} does not exist; {remedy}")


def _parse(text: str, defaults: Mapping[str, Any]) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: settings are typed key=value, e.g. model=logs/latest; --help lists them.")
    _check_key(key, defaults, text)
    if key in _TEXTS and not (key == "model" and value.startswith("[")):
        return key, value
    if key == "model":
        return key, [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:  # the latter: a date that does not exist
        raise ConfigError(f"{text}: the value cannot be read; type e.g. {key}={defaults[key]}.") from error


def _check_key(key: Any, known: Any, text: str) -> None:
    if key not in known:
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)  # as in other commands; our own choice
        hint = f"did you mean {nearest[0]}?" if nearest else f"it is one of {join_names(known, limit=30)}."
        raise ConfigError(f"{text}: there is no setting {str(key)!r}; {hint}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuse a key that is there twice, of which the safe loader itself keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if doubled := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                problem=f"{doubled[0]} is there twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read: {error.strerror}; check config=FILE.yaml.") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{printable(file)} is not YAML ({reason}); see docs/serving.md for an example.") from error
    if not isinstance(content, dict):
        raise DataError(f"{printable(file)} has no settings; see docs/serving.md for an example.")
    return content


def _checked(key: str, value: Any, default: Any) -> Any:
    """Return a value of the type of its default, or raise."""
    if default == "auto":
        default, value = 1, available_cores() if value == "auto" else value
    wanted = type(default)
    if wanted in (int, float):
        is_number = type(value) is int or (wanted is float and type(value) is float and math.isfinite(value))
        smallest, largest = _SMALLEST.get(key, 1e-3), _LARGEST.get(key, math.inf)
        if not is_number or not smallest <= value <= largest:
            what = "a whole number" if wanted is int else "a number"
            low = f"{smallest} or more" if key in _SMALLEST else "above 0"
            high = f", and at most {largest}" if key in _LARGEST else ""
            raise ConfigError(f"{key}={value}: expected {what}, {low}{high}; e.g. {key}={default}.")
        return wanted(value)
    if type(value) is not wanted:
        raise ConfigError(f"{key}={value}: expected {'true or false' if wanted is bool else 'a text'}.")
    return value


def _typed_models(typed: Any) -> dict[str, dict[str, Path]]:
    models: dict[str, dict[str, Path]] = {}
    for text in typed if isinstance(typed, list) else [typed] if typed else []:
        file = _onnx_file(Path(str(text)).expanduser())
        # `logs/latest` is a link, and RUN/export/model.onnx says nothing about its content by its own name.
        run = file.resolve().parent.parent
        name = printable(run.name if file.resolve().parent.name == "export" and run.name else file.stem)
        if name in models:
            raise ConfigError(
                f"model={text}: two models are named {name!r}; name them in a file, with config=FILE.yaml."
            )
        models[name] = {_VERSION: file}
    return models


def _listed_models(listed: Any, source: Path) -> dict[str, dict[str, Path]]:
    """Return `models` of a file, whose relative paths start at its directory."""
    expected = f"{printable(source)}: expected models: {{NAME: {{VERSION: PATH}}}}"
    if not isinstance(listed, dict):
        raise ConfigError(f"{expected}, got {listed!r}.")
    models: dict[str, dict[str, Path]] = {}
    for name, versions in listed.items():
        if not isinstance(versions, dict) or not versions or not all(isinstance(v, str) for v in versions.values()):
            raise ConfigError(f"{expected}, got {versions!r} for {name!r}.")
        for part in (name, *versions):
            if type(part) not in (str, int) or str(part) in ("", ".", "..") or "/" in str(part):
                remedy = "choose another name, or put it in quotes"  # 1.10 without quotes is the number 1.1
                raise ConfigError(f"{expected}; {part!r} cannot be a part of an address, {remedy}.")
        paths = {str(version): source.parent / Path(path).expanduser() for version, path in versions.items()}
        models[str(name)] = {version: _onnx_file(path) for version, path in paths.items()}
    return models


def _onnx_file(path: Path) -> Path:
    """Return the ONNX file of a run directory, or the path itself if it is not a directory."""
    return path / "export" / "model.onnx" if os.path.isdir(path) else path


def _weights(models: Mapping[str, Mapping[str, Path]], typed: Any) -> dict[str, dict[str, float]]:
    """Return the share of each version: as typed, else all for the first version of a model."""
    weights = {name: {v: float(index == 0) for index, v in enumerate(models[name])} for name in models}
    if not isinstance(typed, dict) or not all(isinstance(shares, dict) for shares in typed.values()):
        raise ConfigError(f"weights={typed}: expected weights: {{NAME: {{VERSION: SHARE}}}}.")
    for name, shares in typed.items():
        shares = {str(version): share for version, share in shares.items()}
        if unknown := {str(name)} - {*models} or {*shares} - {*models[str(name)]}:
            raise ConfigError(f"weights: {name}: there is no {join_names(unknown)} in models.")
        numbers = [share for share in shares.values() if type(share) in (int, float) and 0 <= share < math.inf]
        if len(numbers) < len(shares) or not sum(numbers):
            raise ConfigError(f"weights: {name}: {shares}: expected numbers of 0 or more, not all of them 0.")
        weights[str(name)] = {version: shares.get(version, 0) / sum(numbers) for version in models[str(name)]}
    return weights
