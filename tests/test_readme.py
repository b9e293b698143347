"""The commands of the README, run from the README."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from imago.paths import PROJECT_ROOT

README = (PROJECT_ROOT / "README.md").read_text()
COMMANDS = [
    re.sub(r"\s+#.*", "", line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python src/")
]
# What makes a command short enough for a test; the command itself stays as it is printed.
SHORTER = ("trainer=debug", "trainer.num_sanity_val_steps=0")


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (PROJECT_ROOT / link).exists()] == []


def test_readme_names_every_command_and_every_config_group():
    for entry in (PROJECT_ROOT / "src").glob("*.py"):
        assert f"python src/{entry.name}" in README
    for group in (PROJECT_ROOT / "configs").iterdir():
        if group.is_dir() and group.name not in ("hydra", "paths"):
            assert group.name in README


def test_readme_names_every_room():
    for room in (PROJECT_ROOT / "src" / "imago").iterdir():
        if room.name not in ("__init__.py", "__pycache__", "errors.py", "paths.py", "download.py"):
            assert room.name in README, room.name


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs_as_printed(command: str, real_data: Path, finished_run: Path, tmp_path: Path):
    flowers = real_data / "hymenoptera_data"
    argv = shlex.split(command.replace("logs/latest", str(finished_run)).replace("~/flowers", str(flowers)))
    if "train.py" in command and "--cfg" not in command:
        argv += [f"paths.log_dir={tmp_path}"] + [] if "resume=" in command else [f"paths.log_dir={tmp_path}", *SHORTER]
    if "model=resnet18" in command:
        argv += ["model.weights=null", "trainer.accelerator=cpu", "data=shapes"]  # the weights cannot be assumed here
    if "trainer.max_epochs=30" in command:
        pytest.skip("resuming is tested in tests/end_to_end/test_train.py on a run that may change")
    if "photo.jpg" in command:
        argv = [part.replace("photo.jpg", str(next(flowers.glob("val/ants/*.jpg")))) for part in argv]
    done = subprocess.run(
        [sys.executable, *argv[1:]],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "IMAGO_DATA_DIR": str(real_data)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
