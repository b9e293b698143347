"""The code of CONTRIBUTING.md is written into a copy of the project, and its commands run there as printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from PIL import Image
from short_runs import summary
from warm_python import warm_copy

from imago import load_model
from imago.cli.overrides import compose as compose_as_hydra
from imago.instantiate import to_plain
from imago.paths import PROJECT_ROOT, register_resolvers
from imago.settings import flatten

pytestmark = pytest.mark.xdist_group("contributing")  # one copy, one preloaded process

GUIDE = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", GUIDE, re.DOTALL)
# A block of code names the path of its file in its first comment; the file is the block as printed.
FILES = {re.findall(r"^# ((?:src|configs)/\S+)\n", block, re.MULTILINE)[0]: block for block in BLOCKS}
COMMANDS = [command for command in re.findall(r"`([^`\n]+)`", GUIDE) if command.startswith("python src/")]

# Settings that make a run short; the command itself is run as printed.
SHORTER = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=2"),
    *("trainer.limit_test_batches=2", "trainer.accelerator=cpu", "data.batch_size=32"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the files of the guide; paths.py finds the root from its own path."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("src", "configs"):
        shutil.copytree(PROJECT_ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "pyproject.toml", root)
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture(scope="module")
def run(project: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python ARGUMENTS` in the copy, with the imago of the copy."""

    def start(*arguments: str) -> subprocess.CompletedProcess:
        source = project / "src"
        return warm_copy(source).run(*arguments, cwd=project, PYTHONPATH=str(source), warm_children=True)

    return start


@pytest.fixture
def mynet_importable(project: Path, monkeypatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(project / "src")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mynet"]:
        del sys.modules[name]


# The page


def test_the_guide_names_the_four_commands():
    for target in ("setup", "check", "test-fast", "test"):
        assert re.search(rf"^{target}:", (PROJECT_ROOT / "Makefile").read_text(), re.MULTILINE)
        assert f"| `make {target}` |" in GUIDE


def test_every_recipe_is_one_module_and_one_yaml_at_most_and_has_a_command():
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE))
    recipes = {name: text for name, text in sections.items() if re.match("An? |Any |Another ", name)}
    assert len(recipes) >= 12
    for name, text in recipes.items():
        assert text.count("```python") <= 1, name
        assert text.count("```yaml") == 1, name
        assert "`python src/train.py" in text, name
    assert len(FILES) == len(BLOCKS) == GUIDE.count("```") / 2, "each block of code names its file"


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("configs/")])
def test_every_yaml_composes_as_printed(project: Path, path: str):
    group, option = Path(path).parts[1:]
    loader = ConfigLoaderImpl(create_config_search_path(str(project / "configs")))
    register_resolvers()
    cfg = compose_as_hydra(loader, "train", [f"{group}={option.removesuffix('.yaml')}"])
    composed = flatten(to_plain(cfg, resolve=False))
    printed = flatten(yaml.safe_load(FILES[path]), "" if group == "experiment" else group)
    values = {key: value for key, value in printed.items() if not key.endswith("defaults")}
    assert values
    assert {key: composed[key] for key in values} == values


def test_every_file_named_in_the_guide_exists():
    named = re.findall(r"`((?:src|tests|benchmarks|configs)/[^`]*)`", GUIDE)
    assert named
    assert [path for path in named if not (PROJECT_ROOT / path).exists() and not path.startswith("src/mynet")] == []


@pytest.mark.slow
def test_the_code_passes_the_project_s_own_checks(project: Path):
    ruff, mypy = [sys.executable, "-m", "ruff"], [sys.executable, "-m", "mypy"]
    mypy += ["--cache-dir", str(PROJECT_ROOT / ".mypy_cache")]  # which has the installed packages
    for arguments in ([*ruff, "format", "--check"], [*ruff, "check"], mypy):
        done = subprocess.run([*arguments, "src/mynet"], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# The commands


def name_of(command: str) -> str:
    return re.sub(r"\W+", "_", command.removeprefix("python src/train.py"))[:60].strip("_")


def logged_by(folder: Path) -> dict[str, Any]:
    """Return what shows that the recipe was used."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    lines = folder / "metrics.jsonl"
    return {
        "settings": str(checkpoint["hyper_parameters"]) + checkpoint["imago"]["task"],
        "val": summary(folder).get("val", {}),
        "json_lines": [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else [],
        "classes": checkpoint["hyper_parameters"].get("class_names"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if " -m " not in command], ids=name_of)
def test_the_command_trains_as_printed(run, project: Path, command: str):
    done = run(*shlex.split(command)[1:], *SHORTER, f"run_name={name_of(command)}")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "logs" / "train" / name_of(command)
    assert summary(folder)["status"] == "finished"
    used = logged_by(folder)
    for setting, name in re.findall(r"\b(model|loss|task|schedule)=(\w+)", command):
        (target,) = re.findall(r"^_target_: (\S+)", FILES[f"configs/{setting}/{name}.yaml"], re.MULTILINE)
        assert target in used["settings"]
    if "metrics" in command:
        assert used["val"].keys() & {"worst_class", "auroc"}
    if "logger=" in command:
        assert any("val/acc" in line for line in used["json_lines"])
    if "data=digits" in command:
        assert used["classes"] == list("0123456789")


ALL_TOGETHER = (
    *(
        "data=stripes",
        "augment=noise",
        "augment.extra_batch=[{_target_: mynet.scale.Scale, limit: 0.2}]",
        "model=tiny",
        "loss=focal",
        "metrics=worst_class",
        "task=sam",
    ),
    *("callbacks=stop_at", "callbacks.stop_at.value=1.1", "logger=json_lines", "schedule=polynomial"),
    *("callbacks.best_checkpoint.monitor=val/worst_class", "callbacks.best_checkpoint.mode=max"),
)


@pytest.mark.slow
def test_all_recipes_together_resume_and_serve_every_command(
    run, project: Path, mynet_importable: None, tmp_path: Path
):
    """Nothing is typed for the user's own code: not on resume, not for eval, predict, explain, export and report."""
    folder, photo = project / "logs" / "train" / "together", tmp_path / "digit.png"
    Image.new("RGB", (8, 8), "gray").save(photo)
    for arguments in (
        ("src/train.py", *ALL_TOGETHER, *SHORTER, "run_name=together"),
        ("src/train.py", f"resume={folder}", "trainer.max_epochs=2"),
        ("src/eval.py", f"run={folder}"),
        ("src/predict.py", f"run={folder}", f"input={photo}", "explain=true"),
        ("src/export.py", f"run={folder}"),
        ("src/eval.py", f"run={folder / 'export' / 'model.onnx'}"),
        ("src/report.py", f"run={folder}"),
    ):
        done = run(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    results = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    assert results["worst_class"] == pytest.approx(summary(folder)["test"]["worst_class"], abs=1e-6)
    assert summary(folder)["epochs"] == 2
    assert type(load_model(folder, trust=["mynet"]).net).__module__ == "mynet.tiny"  # not in src/ of this process


@pytest.mark.slow
def test_the_experiment_runs_for_each_seed(run, project: Path):
    (command,) = [command for command in COMMANDS if " -m " in command]
    done = run(*shlex.split(command)[1:], *SHORTER, "sweep_name=experiment")
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in ("0", "1", "2"):
        assert summary(project / "logs" / "sweeps" / "experiment" / trial)["status"] == "finished"


def test_statistics_in_the_code_are_those_of_the_train_pixels(project: Path, mynet_importable: None):
    from mynet.digits import DigitsDataModule

    data = DigitsDataModule(batch_size=64, num_workers=0, augment={}, seed=0, val_fraction=0.2, test_fraction=0.2)
    data.set_up_data()
    pixels = data.splits.train.images / 255
    assert data.preprocess.mean == pytest.approx([pixels.mean()] * 3, abs=5e-4)
    assert data.preprocess.std == pytest.approx([pixels.std()] * 3, abs=5e-4)


@pytest.mark.slow
def test_an_experiment_with_another_optimizer_keeps_its_lr(run):
    done = run("src/train.py", "experiment=digits", "optimizer=sgd", "--cfg", "job", "--package", "optimizer")
    assert done.returncode == 0, done.stderr
    assert "_target_: torch.optim.SGD" in done.stdout
    assert "lr: 0.005" in done.stdout
