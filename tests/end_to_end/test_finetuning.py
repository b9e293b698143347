"""From one run to the next: the weights of a run directory, frozen parts, and what the screen says of both."""

from pathlib import Path

import pytest
import torch
from short_runs import SHORT, summary, train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finetuning")]  # their runs are made once


def network(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("first")
    train(logs, *SHORT, "run_name=first", "model=small_resnet", "model.width=8", "trainer.max_epochs=1")
    return logs / "train" / "first"


@pytest.mark.soak
def test_a_run_begins_with_the_network_of_another_and_freezes_a_part(first: Path):
    logs = first.parent.parent
    settings = (
        "model=small_resnet",
        "model.width=8",
        'model.freeze="stages.[01].*"',
        f"model.weights={logs / 'latest'}",
    )
    done = train(logs, *SHORT, *settings, "run_name=second", "optimizer.head_lr_multiplier=10")
    assert "46 of 46 pretrained tensors loaded from best.ckpt" in done.stdout
    assert f"frozen: stages.[01].*, pretrained ({first / 'checkpoints' / 'best.ckpt'})" in done.stdout
    second = logs / "train" / "second"
    before, after = network(first), network(second)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if not name.startswith(("net.stages.0.", "net.stages.1."))}

    # `latest` is now the run itself, and where it began no longer matters
    (first / "checkpoints" / "best.ckpt").rename(first / "checkpoints" / "gone.ckpt")
    train(logs, f"resume={second}", "trainer.max_epochs=3")
    assert summary(second)["epochs"] == 3


@pytest.mark.soak
def test_a_gray_network_is_trained_evaluated_and_exported(tmp_path: Path, command):
    done = train(tmp_path, *SHORT, "run_name=gray", "model=cifar_quick", "model.in_channels=1", "trainer.max_epochs=1")
    assert "CifarQuick, 145,578 parameters, on gray images" in done.stdout
    run = tmp_path / "train" / "gray"
    assert command("src/eval.py", f"run={run}").returncode == 0
    exported = command("src/export.py", f"run={run}")
    assert exported.returncode == 0, exported.stderr
    assert "every label agrees" in exported.stdout
