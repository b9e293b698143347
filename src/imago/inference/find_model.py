"""Find the file of a trained network that a command names: in a run directory, a checkpoint, or an ONNX file."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from imago.errors import ConfigError, DataError
from imago.files import refuse_links
from imago.paths import METADATA_FILE, PROJECT_ROOT, short_path
from imago.runs.records import unfinished_note

_ACCELERATORS = ("auto", "cpu", "gpu")


def resolve_checkpoint(path: Path, name: str = "best") -> Path:
    """Return the checkpoint file `name` of a run directory, or `path` itself if it is a file.

    `name` is best, last, or a file, by its path or by its name in RUN/checkpoints.

    Raises:
        DataError: if there is none; the text starts with `path`.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        near = _nearest(path)
        hint = f"; did you mean {short_path(near)}?" if near else "."
        raise DataError(f"{path} does not exist; type a run directory such as logs/latest, or a checkpoint file{hint}")
    directory = path / "checkpoints"
    candidates = [directory / f"{name}.ckpt", *([] if name in ("best", "last") else [Path(name), directory / name])]
    if file := next(filter(Path.is_file, candidates), None):
        return file
    others = sorted(directory.glob("*.ckpt"))
    end = unfinished_note(path) or "it is not a run directory, or the run has not saved yet."
    found = f"it has {', '.join(file.stem for file in others)}; type the path of a file, such as"
    reason = f"{found} {short_path(others[0])}." if others else end
    wanted = f"checkpoint {name}" if "/" in name else f"checkpoints/{name.removesuffix('.ckpt')}.ckpt"
    raise DataError(f"{path} has no {wanted}; {reason}")


def _nearest(path: Path) -> Path | None:
    """Return what is called about like `path` beside it, or a run of the project with that name."""
    directories = [path.parent] if path.parent.parts else [path.parent, PROJECT_ROOT / "logs" / "train"]
    names: dict[str, Path] = {}
    for directory in directories:
        with suppress(OSError):  # it does not exist, or cannot be read
            names |= {entry.name: entry for entry in directory.iterdir() if entry.is_file() or _is_run(entry)}
    return next((names[name] for name in get_close_matches(path.name, names, n=1)), None)


def _is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file() or (directory / "checkpoints").is_dir()


def _network_problems(run: str | None, ckpt: str | None, accelerator: str) -> Iterator[str]:
    path = Path(run or "")
    if not run:
        yield "run= is empty; type a run directory such as logs/latest, an ONNX file, or for eval.py model=NAME."
    if not ckpt:
        yield "ckpt= is not best, last or a file."
    if ((path.parent if path.is_file() else path) / METADATA_FILE).is_file():
        yield f"run={run} is an exported file that only its own runtime reads; type an ONNX file or the run directory."
    if ckpt != "best" and path.is_file():
        yield f"ckpt={ckpt} selects a checkpoint of a run directory, but run={run} is a file."
    if accelerator not in _ACCELERATORS:
        yield f"accelerator={accelerator} is not one of {', '.join(_ACCELERATORS)}."
    if accelerator == "gpu" and is_onnx(path):
        yield f"accelerator=gpu: run={run} is an ONNX file, which runs on the CPU."


def check_and_find_model(
    run: str | None, ckpt: str | None, accelerator: str, problems: Iterable[str]
) -> tuple[Path, Path | None]:
    """Check the settings of a command, and find its network; loads no torch.

    Returns:
        The file, and the absolute run directory that it belongs to, if there is one.

    Raises:
        ConfigError: with one line for each problem; `problems` are those of the command's other settings.
        DataError: if the run directory contains links.
    """
    path = Path(run or "")
    is_file = path.is_file()
    if messages := [*_network_problems(run, ckpt, accelerator), *problems]:
        raise ConfigError("\n".join(messages))
    try:
        file = resolve_checkpoint(path, str(ckpt))
    except DataError as error:
        raise ConfigError(f"run={error}") from error
    parents = path.resolve().parents[1:3]  # of RUN/checkpoints/best.ckpt, RUN/export/model.onnx, or a level deeper
    found = next((directory for directory in parents if (directory / "config.yaml").is_file()), None)
    run_dir = found if is_file else path.resolve()
    refuse_links(run_dir or path.parent)
    return file, run_dir


def is_onnx(path: Path) -> bool:
    """Return whether a file is an ONNX file, by its name."""
    return path.suffix.lower() == ".onnx"
