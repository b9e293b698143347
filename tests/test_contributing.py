"""The code of CONTRIBUTING.md is written into a copy of the project, and its commands run there as printed."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from short_runs import summary
from warm_python import warm_hydra

from imago import load_model
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT

GUIDE = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
# A block of code opens with the path of its file.
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = [command for command in re.findall(r"`([^`\n]+)`", GUIDE) if command.startswith("python src/")]
EXTRA = "extra_targets=[mynet.*]"

# Settings that make a run short; the command itself is run as printed.
SHORTER = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.accelerator=cpu")


def command_with(part: str) -> list[str]:
    (found,) = [command for command in COMMANDS if part in command]
    return shlex.split(found)[1:]


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
        return warm_hydra().run(*arguments, cwd=project, PYTHONPATH=str(project / "src"))

    return start


@pytest.fixture
def mynet_importable(project: Path, monkeypatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(project / "src")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mynet"]:
        del sys.modules[name]


# The page


def test_the_guide_is_short_and_names_the_four_commands():
    assert len(GUIDE.splitlines()) <= 120
    for target in ("setup", "check", "test-fast", "test"):
        assert re.search(rf"^{target}:", (PROJECT_ROOT / "Makefile").read_text(), re.MULTILINE)
        assert f"| `make {target}` |" in GUIDE


def test_every_block_of_code_names_its_file():
    assert len(FILES) == GUIDE.count("```") / 2 == 5
    assert len(COMMANDS) == 3


def test_every_file_named_in_the_guide_exists():
    named = re.findall(r"`((?:src|tests|benchmarks|configs)/[^`]*)`", GUIDE)
    assert named
    assert [path for path in named if not (PROJECT_ROOT / path).exists() and not path.startswith("src/mynet")] == []


def test_the_code_passes_the_project_s_own_lint(project: Path):
    ruff = [sys.executable, "-m", "ruff"]
    for arguments in (["format", "--check"], ["check"]):
        done = subprocess.run([*ruff, *arguments, "src/mynet"], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# The commands


@pytest.mark.slow
def test_the_network_trains_and_loads_only_if_its_package_is_allowed(run, project: Path, mynet_importable: None):
    done = run(*command_with("model=tiny"), *SHORTER, "run_name=network")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "logs" / "train" / "network"
    assert summary(folder)["status"] == "finished"
    model = load_model(folder, extra_targets=["mynet.*"])
    assert type(model.net).__module__ == "mynet.tiny"
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"mynet\.tiny\.TinyNet is not allowed"):
        load_model(folder)


@pytest.mark.slow
def test_the_dataset_is_trained_on_and_tested(run, project: Path):
    done = run(*command_with("data=digits"), *SHORTER, "run_name=data")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "logs" / "train" / "data"
    assert summary(folder)["status"] == "finished"
    assert summary(folder)["test"]["num_images"] == 359
    assert "1,079 train / 359 val / 359 test" in done.stdout  # the shares of the YAML
    model = load_model(folder)  # the network is imago's own
    assert model.class_names == tuple("0123456789")


@pytest.mark.slow
def test_the_experiment_runs_for_each_seed(run, project: Path, mynet_importable: None):
    done = run(*command_with("experiment=digits"), *SHORTER, "run_name=experiment")
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in ("0", "1", "2"):
        folder = project / "logs" / "sweeps" / "experiment" / trial
        assert summary(folder)["status"] == "finished"
        assert type(load_model(folder, extra_targets=["mynet.*"]).net).__name__ == "TinyNet"


def test_statistics_in_the_code_are_those_of_the_train_pixels(project: Path, mynet_importable: None):
    from mynet.digits import DigitsDataModule

    data = DigitsDataModule(batch_size=64, num_workers=0, augment={}, seed=0, val_fraction=0.2, test_fraction=0.2)
    data.set_up_data()
    pixels = data.splits.train.images / 255
    assert data.preprocess.mean == pytest.approx([pixels.mean()] * 3, abs=5e-4)
    assert data.preprocess.std == pytest.approx([pixels.std()] * 3, abs=5e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        [part for part in command_with("model=tiny") if part != EXTRA],
        [part for part in command_with("data=digits") if part != EXTRA],
        ["src/train.py", "experiment=digits", "extra_targets=[]"],
    ],
    ids=["network", "dataset", "experiment"],
)
def test_without_extra_targets_the_command_is_refused(run, project: Path, arguments: list[str]):
    done = run(*arguments, "run_name=refused")
    assert done.returncode == 2
    assert "is not allowed" in done.stderr
    assert "add it, e.g. extra_targets: [mynet.*]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "logs" / "train" / "refused").exists()


def test_an_experiment_with_another_optimizer_keeps_its_lr(run):
    done = run("src/train.py", "experiment=digits", "optimizer=sgd", "--cfg", "job", "--package", "optimizer")
    assert done.returncode == 0, done.stderr
    assert "_target_: torch.optim.SGD" in done.stdout
    assert "lr: 0.005" in done.stdout
