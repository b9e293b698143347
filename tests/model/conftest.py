"""Files of weights as torchvision publishes them, written by the tests, and an empty hub cache."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision import models


@pytest.fixture
def saved() -> Callable[[Path, str], Path]:
    """Write the weights of a network, with random numbers even where a new one has zeros and ones."""

    def run(path: Path, name: str) -> Path:
        torch.manual_seed(1)
        state = models.get_model(name, weights=None).state_dict()
        torch.save({key: value + torch.rand(value.shape).to(value.dtype) for key, value in state.items()}, path)
        return path

    return run


@pytest.fixture
def changed() -> Callable[..., Path]:
    """Change, add or (None) remove tensors of a file; `__` in a name stands for a dot."""

    def run(path: Path, **tensors: torch.Tensor | None) -> Path:
        state = torch.load(path, weights_only=True) | {key.replace("__", "."): value for key, value in tensors.items()}
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        return path

    return run


@pytest.fixture
def squeezenet(saved: Callable, tmp_path: Path) -> Path:
    return saved(tmp_path / "squeezenet.pth", "squeezenet1_0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch):
    """Rename a file to include its hash, and make it torchvision's default weights of `name`."""

    def run(file: Path, name: str, url: str = "https://download.invalid/models") -> Path:
        named = file.with_name(f"{name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
        file.rename(named)
        monkeypatch.setattr(models.get_model_weights(name).DEFAULT.value, "url", f"{url}/{named.name}")
        return named

    return run
