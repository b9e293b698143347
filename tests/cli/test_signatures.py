"""Arguments that are read from the source are those that `inspect` finds in the imported class."""

import importlib
import inspect
import sys
import textwrap

import pytest

from imago.cli.signatures import read_signature

TARGETS = [
    *("torch.optim.AdamW", "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.nn.CrossEntropyLoss"),
    *("lightning.pytorch.Trainer", "lightning.pytorch.callbacks.ModelCheckpoint"),
    *("imago.callbacks.ema.Ema", "imago.loss.cross_entropy.CrossEntropy", "imago.augment.settings.Augment"),
    *("torchvision.transforms.v2.RandomRotation", "sklearn.svm.SVC", "imago.model.simple_cnn.SimpleCNN"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_closed_signature_has_the_names_of_the_imported_class(target: str):
    module, _, name = target.rpartition(".")
    expected = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert read_signature(target) is not None
    assert set(read_signature(target).types) == set(expected)
    assert not read_signature(target).is_open


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("torchvision.models.resnet18", "zero_init_residual"),  # passed on to ResNet by a function
        ("torchmetrics.classification.MulticlassAUROC", "num_classes"),
        ("timm.create_model", "pretrained"),
    ],
)
def test_kwargs_that_may_go_anywhere_are_open(target: str, name: str):
    signature = read_signature(target)
    assert signature.is_open
    assert name in signature.types


def test_kwargs_that_go_to_a_base_class_or_function_add_its_arguments():
    signature = read_signature("imago.data.cifar10.CIFAR10DataModule")
    assert {"root", "batch_size", "split_seed"} <= set(signature.types)
    assert not signature.is_open
    logger = read_signature("lightning.pytorch.loggers.TensorBoardLogger")
    assert "flush_secs" in logger.types  # of SummaryWriter, which gets the arguments later
    assert not logger.is_open


PACKAGE = {
    "__init__.py": "raise RuntimeError\nfrom .parts import *\nfrom .parts import Base as Renamed",
    "parts.py": """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import Optional, Union

        def first(a: int = 1): ...

        class Base:
            def __init__(self, x: int, /, y: "float" = 1.0, *, z: Optional[str] = None, w: bool | int = 0): ...

        class Derived(Base): ...

        class Longer(Derived):
            def __init__(self, own: list[int], **kwargs):
                super().__init__(**kwargs)

        class Open(Base):
            def __init__(self, **kwargs):
                self.kwargs = kwargs

        @dataclass
        class Data:
            size: Union[int, None] = None

        class Cycle(Cycle): ...
    """,
    "plain/deep.py": "def build(*, n: str): ...",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    name = f"pack_{tmp_path.name.replace('-', '_')}"
    for file, text in PACKAGE.items():
        (tmp_path / name / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name / file).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_names_and_simple_types_are_followed_without_importing(package: str):
    base = {"y": (float,), "z": (str, type(None)), "w": (int, bool)}
    for name in ("Base", "Derived", "Renamed", "parts.Base"):
        assert read_signature(f"{package}.{name}") == (base, False)
    assert read_signature(f"{package}.Longer") == (base | {"own": ()}, False)
    assert read_signature(f"{package}.Open").is_open
    assert read_signature(f"{package}.Data") == ({"size": (int, type(None))}, False)
    assert read_signature(f"{package}.parts.first") == ({"a": (int,)}, False)
    assert read_signature(f"{package}.plain.deep.build") == ({"n": (str,)}, False)
    assert read_signature(f"{package}.Cycle") == ({}, True)
    assert package not in sys.modules


@pytest.mark.parametrize(
    "target",
    ["torch.optim.AdamV", "nopackage.Net", "os.system", "builtins.dict", "math.sqrt", "torch.relu", "pathlib.Path.cwd"],
)
def test_what_has_no_source_is_unknown(target: str):
    assert read_signature(target) is None
