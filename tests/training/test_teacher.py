"""A teacher is a run or a network with weights; errors name the settings of the teacher."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from short_runs import SHORT, train
from small_fit import build_data

from imago.errors import ConfigError
from imago.model.simple_cnn import SimpleCNN
from imago.training.resume import resolve_teacher
from imago.training.teacher import load_teacher_run, prepare_teacher

ONE_EPOCH = (*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=6")


@pytest.fixture
def config_with_teacher(compose: Callable) -> Callable[[Path | str], DictConfig]:
    def settings(weights: Path | str) -> DictConfig:
        network = ("+model@task.teacher=simple_cnn", "task.teacher.hidden_features=8")
        return compose("data=shapes", "task=distillation", *network, f"task.teacher.weights={weights}")

    return settings


def save_network(file: Path, num_classes: int) -> SimpleCNN:
    net = SimpleCNN(num_classes, image_size=32, hidden_features=8)
    torch.save(net.state_dict(), file)
    return net.eval()


def test_a_network_with_weights_for_the_classes_of_the_data_is_a_teacher(config_with_teacher: Callable, tmp_path: Path):
    net = save_network(tmp_path / "known.pth", num_classes=10)
    cfg = config_with_teacher(tmp_path / "known.pth")
    images = torch.randn(4, 3, 32, 32)
    before = torch.get_rng_state()
    assert load_teacher_run(cfg) is None
    teacher = prepare_teacher(cfg, None, build_data(cfg)).eval()
    assert torch.equal(torch.get_rng_state(), before), "the student would start from other weights"
    torch.testing.assert_close(teacher(images), net(images))


def test_a_network_whose_head_is_of_other_classes_is_refused(config_with_teacher: Callable, tmp_path: Path):
    save_network(tmp_path / "other.pth", num_classes=7)
    cfg = config_with_teacher(tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights=.*classifier\.4\.weight.*have the 10 classes"):
        prepare_teacher(cfg, None, build_data(cfg))


def test_errors_about_its_weights_name_the_setting_task_teacher(config_with_teacher: Callable, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights=/no/file\.pth does not exist"):
        load_teacher_run(config_with_teacher("/no/file.pth"))
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "strange.pth")
    cfg = config_with_teacher(tmp_path / "strange.pth")
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights: .*strange\.pth does not fit this network"):
        prepare_teacher(cfg, None, build_data(cfg))


def test_a_run_given_as_weights_is_refused_as_its_classes_would_not_be_compared(
    config_with_teacher: Callable, tmp_path: Path
):
    with pytest.raises(ConfigError, match=r"a run is typed task\.teacher=RUN"):
        resolve_teacher(config_with_teacher(tmp_path).task)


def test_the_weights_file_of_a_teacher_becomes_an_absolute_path(
    config_with_teacher: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_network(tmp_path / "known.pth", num_classes=10)
    monkeypatch.chdir(tmp_path)
    cfg = config_with_teacher("known.pth")
    resolve_teacher(cfg.task)
    assert cfg.task.teacher.weights == str(tmp_path / "known.pth")


def test_a_network_name_as_teacher_is_refused_with_the_syntax_for_a_network(compose: Callable):
    with pytest.raises(ConfigError, match=r"task\.teacher=resnet18 does not exist.*\+model@task\.teacher=NAME"):
        resolve_teacher(compose("task=distillation", "task.teacher=resnet18").task)


@pytest.fixture(scope="module")
def distilled(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with a teacher that is typed as a symbolic link, as `logs/latest` is; return the run directory."""
    logs = tmp_path_factory.mktemp("distilled")
    (logs / "latest").symlink_to(finished_run)
    done = train(logs, *ONE_EPOCH, "run_name=student", "task=distillation", f"task.teacher={logs}/latest")
    (logs / "screen.txt").write_text(done.stdout)
    return logs / "train" / "student"


@pytest.mark.slow
@pytest.mark.xdist_group("recipes")
def test_a_distilled_run_records_its_teacher_and_evaluates_like_any_other(distilled: Path, finished_run: Path, command):
    screen = (distilled.parents[1] / "screen.txt").read_text()
    assert "temperature 4.0, 70% of the loss" in screen
    assert f"teacher: {finished_run}" in (distilled / "config.yaml").read_text()
    done = command("src/eval.py", f"run={distilled}", "accelerator=cpu")
    assert done.returncode == 0, done.stderr
    assert "(the run's final test: the same)" in done.stdout


def test_a_run_with_other_classes_is_refused(compose: Callable):
    cfg = compose("data=shapes", "task=distillation", "task.teacher=/a/run")
    teacher: Any = SimpleNamespace(class_names=("ants", "bees"))
    message = "^task.teacher=/a/run has the classes ants bees, and the data .*; use a teacher with the same classes"
    with pytest.raises(ConfigError, match=message):
        prepare_teacher(cfg, teacher, build_data(cfg))
