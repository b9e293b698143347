"""A project of another name is made from this one, and its tests pass."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "tools" / "new_project.py"
needs_git = pytest.mark.skipif(not (PROJECT_ROOT / ".git").exists(), reason="this is not a git clone")


def make(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), name, str(folder)], capture_output=True, text=True)


@needs_git
@pytest.mark.slow
def test_a_new_project_has_its_own_name_and_its_tests_pass(tmp_path: Path):
    project = tmp_path / "birdnet"
    done = make("birdnet", project)
    assert done.returncode == 0, done.stderr
    assert f"cd {project} && make test-fast" in done.stdout
    log = subprocess.run(["git", "log", "--oneline"], cwd=project, capture_output=True, text=True, check=True).stdout
    assert len(log.splitlines()) == 1
    own = {"LICENSE", "requirements.lock", "CHANGELOG.md"}
    texts = [file for file in project.rglob("*") if file.suffix in (".py", ".md", ".yaml", ".toml", ".ipynb")]
    assert [file for file in texts if "imago" in file.read_text().lower() and file.name not in own] == []
    assert (project / "README.md").read_text().startswith("# birdnet\n")
    assert not (project / "benchmarks" / "results").exists()
    pages = [project / "README.md", project / "CONTRIBUTING.md", *(project / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text())]
    made = {"recipes.md", "settings.md"}  # by docs/conf.py
    assert len(links) > 50
    assert [link for page, link in links if not (page.parent / link).exists() and link not in made] == []
    for lint in (["check", "--quiet"], ["format", "--quiet", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *lint, "."], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    some = ("tests/configs", "tests/test_architecture.py", "tests/test_readme.py", "tests/test_contributing.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow and not soak", *some, "tests/docs"]
    tested = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr
    done = subprocess.run(
        [sys.executable, "src/train.py", "optimizer.lrr=1"], cwd=project, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean optimizer.lr?" in done.stderr


@needs_git
@pytest.mark.parametrize("name", ["imago", "torch-vision", "Birds", "json", "1st", "", "class", "torch", "train"])
def test_a_name_that_cannot_be_a_package_is_one_line(name: str, tmp_path: Path):
    done = make(name, tmp_path / "project")
    assert done.returncode == 2
    assert done.stderr.startswith("error: NAME")
    assert "make new NAME=birdnet DIR=../birdnet" in done.stderr
    assert not (tmp_path / "project").exists()


@needs_git
def test_a_directory_with_files_is_kept(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    done = make("birdnet", tmp_path)
    assert "exists and is not empty" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    assert "inside this project" in make("birdnet", PROJECT_ROOT / "birdnet").stderr
