"""The commands of the README and of the pages for a start are run as printed; links, folders and names exist."""

import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

import pytest
from short_runs import SWEEP, train
from warm_python import warm_imago

from imago.paths import PROJECT_ROOT

README = (PROJECT_ROOT / "README.md").read_text()
RESULTS = PROJECT_ROOT / "benchmarks" / "results"
PAGES = [README, *((PROJECT_ROOT / "docs" / name).read_text() for name in ("start.md", "images.md"))]
COMMANDS = [
    *dict.fromkeys(
        re.sub(r"\s+#.*", "", line)
        for page in PAGES
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("python src/")
    )
]
# Commands whose runs other tests read too: fixtures of conftest.py run them.
SHARED = (shlex.join(["python", "src/train.py", *SWEEP]), "python src/export.py run=logs/latest")
SERVED = "python src/serve.py model=logs/latest"  # runs until it is stopped: see tests/serve/test_serve.py
# Settings that make a run short; the command itself is run as printed.
SHORTER = ("debug=default", "trainer.num_sanity_val_steps=0")


def test_readme_is_short_and_its_links_exist():
    assert len(README.splitlines()) <= 120
    assert max(map(len, README.splitlines())) <= 100
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (PROJECT_ROOT / link).exists()] == []


def test_readme_names_every_command():
    for entry in (PROJECT_ROOT / "src").glob("*.py"):
        assert f"python src/{entry.name}" in README


def test_the_layout_names_every_config_group_package_and_module():
    layout = (PROJECT_ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].partition("## A network")[0]
    for group in (PROJECT_ROOT / "configs").iterdir():
        if group.is_dir() and group.name not in ("hydra", "paths"):
            assert group.name in layout
    for part in (PROJECT_ROOT / "src" / "imago").iterdir():
        if part.name not in ("__init__.py", "__pycache__", "errors.py", "paths.py", "download.py"):
            assert part.name in layout, part.name


@pytest.mark.skipif(not RESULTS.exists(), reason="a project that was made from this one has no stored results")
def test_ratios_of_the_comparison_are_those_of_the_stored_results():
    template, script = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("template", "train_speed"))
    ratios = f"{template['ratio']:.1f} (its network) | {script['ratio_b_over_a']['median']:.2f} (SimpleCNN)"
    assert f"| CPU time of an epoch | 1 | {ratios} |" in README
    measured = statistics.median(template["cpu_s_per_epoch"]["template"])
    assert template["ratio"] == round(measured / statistics.median(template["cpu_s_per_epoch"]["imago"]), 2)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in (*SHARED, SERVED)])
def test_command_runs_as_printed(command: str, real_data: Path, finished_run: Path, tmp_path: Path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    if "resume=" in command:  # to be continued with as few batches per epoch
        train(tmp_path / "logs", "data=shapes", "data.batch_size=16", "model.hidden_features=16", *SHORTER)
        run = tmp_path / "logs" / "latest"
    images = real_data / "hymenoptera_data"
    real_paths = {"logs/latest": run, "~/flowers": images, "photo.jpg": next(images.glob("val/ants/*.jpg"))}
    for printed, real in real_paths.items():
        command = command.replace(printed, str(real))
    arguments = [*shlex.split(command)[1:], *extra_arguments(command, tmp_path)]
    done = warm_imago().run(*arguments, IMAGO_DATA_DIR=str(real_data))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("sweep")
def test_the_sweep_runs_as_printed(finished_sweep: Path):
    assert SHARED[0] in COMMANDS
    assert (finished_sweep / "ranking.md").exists()


@pytest.mark.slow
def test_the_export_runs_as_printed(exported_run: Path):
    assert SHARED[1] in COMMANDS
    assert (exported_run / "export" / "model.onnx").exists()


def extra_arguments(command: str, logs: Path) -> list[str]:
    """Return settings that make a training run short and independent of downloaded weights."""
    if "check.py" in command or "resume=" in command:
        return [f"paths.log_dir={logs}"]  # `latest` of the shared run stays
    if "train.py" not in command or "--cfg" in command:
        return []
    extra = [f"paths.log_dir={logs}", *SHORTER, "data.batch_size=16"]
    if "experiment=" in command:
        extra += ["trainer.max_epochs=1"]  # the experiment overrides the trainer's value
    if "finetune_folder" in command:
        extra += ["model.weights=null", "data.cache=none", "data.batch_size=4"]
    if "data=image_folder" in command:
        return [*extra, "model.weights=null", "data.cache=none", "data.batch_size=4", "trainer.accelerator=cpu"]
    if "model=resnet18" in command:
        extra += ["model.weights=null", "trainer.accelerator=cpu", "data=shapes", "data.batch_size=4"]
    return extra
