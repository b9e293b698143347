"""Copy this template to a new project with a name of its own: `make new NAME=birdnet DIR=../birdnet`.

All tracked files are copied as they are now, except the stored results of the benchmarks and the comparison with other
templates. The package, its title, environment variables and file names get the new name, and the directory becomes a
git repository with one commit. `make test-fast` passes there.
"""

import importlib.util
import keyword
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PROJECT_ROOT = Path(__file__).resolve().parent.parent
OLD_NAME = "imago"
LEFT_OUT = ("benchmarks/results/", "docs/comparison.md", "CHANGELOG.md", "CITATION.cff", "tests/tools/")
USAGE = "make new NAME=birdnet DIR=../birdnet"


def main(name: str, target: Path) -> None:
    """Write the project; leave no part of it after an error."""
    check(name, target)
    target.mkdir(parents=True, exist_ok=True)
    try:
        copy(name, target)
        run(sys.executable, "-m", "ruff", "check", "--quiet", "--fix", "--select", "I", ".", directory=target)
        run(sys.executable, "-m", "ruff", "format", "--quiet", ".", directory=target)
        run("git", "init", "--quiet", directory=target)
        run("git", "add", "--all", directory=target)
        author = ["-c", f"user.name={name}", "-c", f"user.email={name}@localhost"] if not has_author() else []
        run("git", *author, "commit", "--quiet", "--message", f"Start from {OLD_NAME} {commit()}", directory=target)
    except BaseException:
        shutil.rmtree(target)
        raise
    print(f"wrote {target}; next:\n  cd {target} && make test-fast\n  make train")


def check(name: str, target: Path) -> None:
    """End with the reason if a name or a directory cannot be used."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or is_taken(name):
        fail(f"error: NAME={name}: type a new name of small letters, digits and _, e.g. {USAGE}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        fail(f"error: DIR={target} exists and is not empty; type another one")
    if target.resolve().is_relative_to(PROJECT_ROOT):
        fail(f"error: DIR={target} is inside this project; type another one, e.g. {USAGE}")


def is_taken(name: str) -> bool:
    """Return whether a package of this name cannot be imported, or would hide another one, e.g. torch."""
    own = name in (OLD_NAME, "src", "tests") or (PROJECT_ROOT / "src" / f"{name}.py").exists()
    is_python = keyword.iskeyword(name) or name in sys.stdlib_module_names
    return own or is_python or importlib.util.find_spec(name) is not None


def fail(message: str) -> NoReturn:
    """End with the message of an error of the user."""
    print(message, file=sys.stderr)
    sys.exit(2)


def copy(name: str, target: Path) -> None:
    """Copy the tracked files with the new name in paths and texts."""
    for path in run("git", "ls-files", "-z", directory=PROJECT_ROOT).split("\0"):
        if not path or path.startswith(LEFT_OUT) or not (PROJECT_ROOT / path).is_file():
            continue
        content = (PROJECT_ROOT / path).read_bytes()
        if b"\0" not in content:
            content = renamed(path, content.decode(), name).encode()
        file = target / path.replace(OLD_NAME, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        shutil.copymode(PROJECT_ROOT / path, file)
    (target / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\nStarted from {OLD_NAME} {commit()}.\n")


def renamed(path: str, text: str, name: str) -> str:
    """Return the text of a file with the new name and without what is about the template itself."""
    if path == "README.md":
        text = re.sub(r"## Compared\n.*?(?=## Results\n)", "", text, flags=re.DOTALL)
        text = re.sub(r"Differences paired over .*?(?=MIT license)", "", text, flags=re.DOTALL)
    if path == "docs/index.md":
        text = text.replace(
            "compare it with other templates | [Comparison](comparison.md), ", "see what was measured | "
        )
        text = text.replace("\ncomparison\n", "\n")
    if path.startswith("docs/"):
        text = re.sub(r"!\[[^]]*\]\(\.\./benchmarks/results/.*?\)\n\n", "", text)
        text = re.sub(r"\[([^]]*)\]\(\.\./benchmarks/results/.*?\)", r"\1", text)
    if path == "pyproject.toml" and len(name) > len(OLD_NAME):
        text = text.replace("ignore = [\n", 'ignore = [\n    "E501",  # comments that became longer with the name\n', 1)
    if path in ("LICENSE", "requirements.lock"):
        return text
    return text.replace(OLD_NAME, name).replace(OLD_NAME.upper(), name.upper()).replace(OLD_NAME.title(), name.title())


def commit() -> str:
    """Return the commit of the template."""
    return run("git", "rev-parse", "--short", "HEAD", directory=PROJECT_ROOT).strip()


def has_author() -> bool:
    """Return whether git knows whose commits these are."""
    return subprocess.run(["git", "config", "user.email"], capture_output=True).returncode == 0


def run(*command: str, directory: Path) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument]
    if len(arguments) != 2:
        fail(f"error: NAME and DIR are needed, e.g. {USAGE}")
    main(arguments[0], Path(arguments[1]).expanduser())
