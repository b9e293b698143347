"""Locate the project and the current run, and format paths.

`${project_root:}` in a YAML is the directory that holds `configs/` and `src/`. It is derived from this file's location,
because the working directory differs between shells, notebooks, sweeps and ranks.
"""

import os
import shlex
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from imago.text import printable

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CONFIG_DIR = PROJECT_ROOT / "configs"
METADATA_FILE = "metadata.json"  # in the directory of every exported format but ONNX, whose file holds its metadata
_START_TIME = datetime.now()  # one value per process, because the run directory is resolved more than once


def register_resolvers() -> None:
    """Register `${project_root:}` and `${name_or_time:${run_name}}` with OmegaConf; safe to call twice."""
    from omegaconf import OmegaConf

    time = os.environ.get("RUN_ID") or _START_TIME.strftime("%Y-%m-%d_%H-%M-%S-%f")
    OmegaConf.register_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)
    OmegaConf.register_resolver("name_or_time", lambda name: name or time, replace=True)


def executable(name: str = "python") -> str:
    """Return the name of a program of this environment if a shell finds it, else its path."""
    own = Path(sys.executable) if name == "python" else Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found is not None and Path(found).parent == own.parent else short_path(own)


def command(script: str) -> str:
    """Return the start of a command line that runs `src/SCRIPT.py` from this directory: `python src/eval.py`.

    A directory of further YAMLs that was typed is repeated.
    """
    words = [executable(), short_path(PROJECT_ROOT / "src" / f"{script}.py")]
    for flag, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if script in ("train", "check") and flag.partition("=")[0] in ("-cd", "--config-dir"):
            words += [flag] if "=" in flag else [flag, value]
    return shlex.join(words)


def short_path(path: Path) -> str:
    """Return `path` for the screen, with slashes, escaped, and relative to the working directory if that is shorter."""
    names = [str(path)]
    with suppress(ValueError):  # on another drive of Windows
        names.append(os.path.relpath(path))
    return printable(min(names, key=len).replace(os.sep, "/"))


def checkpoint_file(run_dir: Path, name: str = "best") -> Path:
    """Return the file of the checkpoint `best` or `last` of a run, whether or not it exists."""
    return run_dir / "checkpoints" / f"{name}.ckpt"


def job_output_dir() -> Path:
    """Return the output directory of the current Hydra job, absolute and existing.

    Works only in a command started by `imago.cli.entry.run_command`.
    """
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def quote_for_hydra(value: str) -> str:
    """Quote a value so that Hydra's override grammar returns it unchanged."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.double).with_quotes()
