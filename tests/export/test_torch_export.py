"""The program of `torch.export` runs without the code of the network, and a network without one is one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imago.errors import UserError
from imago.export.torch_export import export_program, name_of
from imago.images import Preprocess
from imago.model.classifier import Classifier
from imago.model.torchvision_net import TorchvisionNet

pytestmark = pytest.mark.slow


def test_the_file_runs_where_the_project_cannot_be_imported(
    export: Callable, trained: Classifier, val_images: np.ndarray, tmp_path: Path
):
    path, _ = export("torch_export")
    np.save(tmp_path / "images.npy", val_images[:5])
    code = (
        "import sys; sys.modules['imago'] = None; import numpy as np, torch; "
        f"module = torch.export.load({str(path / 'model.pt2')!r}).module(); "
        f"images = torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r})); "
        f"np.save({str(tmp_path / 'probabilities.npy')!r}, module(images)[1].detach().numpy())"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    expected = trained.probabilities(val_images[:5]).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


class FixedBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).view(2, 3)


@pytest.mark.parametrize("net", [Branching(), FixedBatch()], ids=lambda net: type(net).__name__)
def test_a_network_that_cannot_be_traced_is_one_line_with_its_class_and_the_reason(net: nn.Module):
    classifier = Classifier(net, ["a", "b", "c"], Preprocess(8, 8, "center", (0.0,) * 3, (1.0,) * 3)).eval()
    with pytest.raises(UserError) as caught:
        export_program(classifier)
    begin = f"{type(net).__name__} cannot be traced by torch.export: "
    assert str(caught.value).startswith(begin)
    assert str(caught.value).endswith("; change its forward.")
    assert len(str(caught.value)) > len(begin) + 40
    assert "\n" not in str(caught.value)


def test_a_largest_batch_is_kept(trained: Classifier):
    program = export_program(trained, 64)
    assert [bounds.upper for bounds in program.range_constraints.values()] == [64]
    logits, probabilities = program.module()(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == probabilities.shape == (3, 10)


def test_a_network_of_a_library_has_the_name_that_was_typed():
    preprocess = Preprocess(32, 32, "center", (0.0,) * 3, (1.0,) * 3)
    net = TorchvisionNet(2, 32, "squeezenet1_1")
    assert name_of(Classifier(net, ["a", "b"], preprocess)) == "squeezenet1_1"
    assert name_of(Classifier(FixedBatch(), ["a", "b"], preprocess)) == "FixedBatch"
