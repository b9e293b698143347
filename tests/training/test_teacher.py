"""Any network with weights can teach, as a run can; what cannot teach is told by the teacher's own settings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from small_fit import build_data

from imago.errors import ConfigError
from imago.model.simple_cnn import SimpleCNN
from imago.training.teacher import load_run, prepare_teacher, resolve_teacher


@pytest.fixture
def taught_by(compose: Callable) -> Callable[[Path | str], DictConfig]:
    def settings(weights: Path | str) -> DictConfig:
        network = ("+model@task.teacher=simple_cnn", "task.teacher.hidden_features=8")
        return compose("data=shapes", "task=distillation", *network, f"task.teacher.weights={weights}")

    return settings


def saved(file: Path, num_classes: int) -> SimpleCNN:
    net = SimpleCNN(num_classes, image_size=32, hidden_features=8)
    torch.save(net.state_dict(), file)
    return net.eval()


def test_a_network_with_weights_of_the_datas_classes_teaches(taught_by: Callable, tmp_path: Path):
    net = saved(tmp_path / "known.pth", num_classes=10)
    cfg = taught_by(tmp_path / "known.pth")
    images = torch.randn(4, 3, 32, 32)
    before = torch.get_rng_state()
    assert load_run(cfg) is None
    teacher = prepare_teacher(cfg, None, build_data(cfg)).eval()
    assert torch.equal(torch.get_rng_state(), before), "the student would start from other weights"
    torch.testing.assert_close(teacher(images), net(images))


def test_a_network_whose_head_is_of_other_classes_is_refused(taught_by: Callable, tmp_path: Path):
    saved(tmp_path / "other.pth", num_classes=7)
    cfg = taught_by(tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights=.*classifier\.4\.weight.*know the 10 classes"):
        prepare_teacher(cfg, None, build_data(cfg))


def test_what_is_wrong_with_its_weights_names_the_teacher(taught_by: Callable, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights=/no/file\.pth does not exist"):
        load_run(taught_by("/no/file.pth"))
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "strange.pth")
    cfg = taught_by(tmp_path / "strange.pth")
    with pytest.raises(ConfigError, match=r"^task\.teacher\.weights: .*strange\.pth does not fit this network"):
        prepare_teacher(cfg, None, build_data(cfg))


def test_a_run_given_as_weights_is_refused_as_its_classes_would_not_be_compared(taught_by: Callable, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a run is typed task\.teacher=RUN"):
        resolve_teacher(taught_by(tmp_path).task)


def test_a_file_is_kept_by_its_full_name(taught_by: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "known.pth", num_classes=10)
    monkeypatch.chdir(tmp_path)
    cfg = taught_by("known.pth")
    resolve_teacher(cfg.task)
    assert cfg.task.teacher.weights == str(tmp_path / "known.pth")


def test_a_network_in_place_of_a_run_is_told_how_it_is_typed(compose: Callable):
    with pytest.raises(ConfigError, match=r"task\.teacher=resnet18 does not exist.*\+model@task\.teacher=NAME"):
        resolve_teacher(compose("task=distillation", "task.teacher=resnet18").task)
