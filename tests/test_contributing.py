"""The code of CONTRIBUTING.md is written into a copy of the project, and its commands run there as printed."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from short_runs import summary
from warm_python import warm_hydra

from imago import load_model
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT
from imago.runs.checkpoint import read_checkpoint

GUIDE = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
# A block of code opens with the path of its file.
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = [command for command in re.findall(r"`([^`\n]+)`", GUIDE) if command.startswith("python src/")]

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
    """Let this process import mynet, and trust it as the commands of the copy do."""
    monkeypatch.syspath_prepend(project / "src")
    monkeypatch.setattr("imago.trust._SOURCE_DIR", project / "src")
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
def test_a_run_of_an_own_network_is_evaluated_exported_and_resumed_without_anything_typed(run, project: Path):
    done = run(*command_with("model=tiny"), *SHORTER, "run_name=network")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "logs" / "train" / "network"
    for command in (
        ["src/eval.py", f"run={folder}"],
        ["src/export.py", f"run={folder}", "limit=5"],
        ["src/train.py", f"resume={folder}", "trainer.max_epochs=2"],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert summary(folder)["epochs"] == 2
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["hyper_parameters"]["net"]["_target_"].startswith("my")


@pytest.mark.slow
def test_a_network_from_elsewhere_needs_trust(run, project: Path, tmp_path: Path):
    done = run(*command_with("model=tiny"), *SHORTER, "run_name=moved")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "logs" / "train" / "moved"
    with pytest.raises(
        ConfigError, match=r"model\._target_=mynet\.tiny\.TinyNet is neither .* type trust=\[mynet\]\.$"
    ):
        load_model(folder)  # of this project, whose src/ has no mynet
    elsewhere = shutil.copytree(project / "src" / "mynet", tmp_path / "othernet")
    settings = (project / "configs/model/tiny.yaml").read_text().replace("mynet", "othernet")
    (project / "configs/model/other.yaml").write_text(settings)

    def start(*arguments: str) -> subprocess.CompletedProcess:
        return warm_hydra().run(*arguments, cwd=project, PYTHONPATH=f"{project / 'src'}:{elsewhere.parent}")

    typed = ("data=shapes", "model=other", *SHORTER, "run_name=other")
    folder = project / "logs" / "train" / "other"
    assert start("src/train.py", *typed).returncode == 0
    for command in (["src/eval.py", f"run={folder}"], ["src/export.py", f"run={folder}", "limit=5"]):
        done = start(*command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "model._target_=othernet.tiny.TinyNet is neither a Module of this project's src/" in done.stderr
        assert start(*command, "trust=[othernet]").returncode == 0


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
        assert type(load_model(folder).net).__name__ == "TinyNet"


def test_statistics_in_the_code_are_those_of_the_train_pixels(project: Path, mynet_importable: None):
    from mynet.digits import DigitsDataModule

    data = DigitsDataModule(batch_size=64, num_workers=0, augment={}, seed=0, val_fraction=0.2, test_fraction=0.2)
    data.set_up_data()
    pixels = data.splits.train.images / 255
    assert data.preprocess.mean == pytest.approx([pixels.mean()] * 3, abs=5e-4)
    assert data.preprocess.std == pytest.approx([pixels.std()] * 3, abs=5e-4)


def test_an_experiment_with_another_optimizer_keeps_its_lr(run):
    done = run("src/train.py", "experiment=digits", "optimizer=sgd", "--cfg", "job", "--package", "optimizer")
    assert done.returncode == 0, done.stderr
    assert "_target_: torch.optim.SGD" in done.stdout
    assert "lr: 0.005" in done.stdout
