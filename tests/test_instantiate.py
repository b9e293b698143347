"""Targets of a config: classes and functions are built, nested ones too; wrong names and keys are explained."""

import re
import sys
import traceback
import types
from functools import partial
from pathlib import PurePosixPath

import pytest
import torch
from omegaconf import OmegaConf

from imago.errors import ConfigError, DataError
from imago.instantiate import accepts, accepts_any, build, import_target_or_none, targets

MODULE = """
from imago.errors import DataError

class Net:
    def __init__(self, width, depth=2):
        self.width, self.depth = width, depth

class Task:
    def __init__(self, net):
        self.net = net

def passes_on(**kwargs):
    return Net(3, **kwargs)

def no_images(root):
    raise DataError(f"data.root={root}: no images")

def bug(x):
    return {}[x]

def needs_package():
    import absent_package_of_a_test

def inner_type_error(x):
    return len(x)
"""


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    """Make a user's own package importable for one test."""
    package = tmp_path / "mynet"
    package.mkdir()
    (package / "__init__.py").write_text(MODULE)
    (package / "needs_absent.py").write_text("import absent_package_of_a_test\n")
    (package / "broken.py").write_text("import os\nos.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mynet"]:
        del sys.modules[name]


def test_a_missing_package_of_a_class_is_one_line(mynet):
    with pytest.raises(ConfigError, match=r"^callbacks\._target_=mynet\.needs_package: No module named 'absent_pack"):
        build(OmegaConf.create({"callbacks": {"_target_": "mynet.needs_package"}}).callbacks)


def test_classes_functions_and_nested_nodes_are_built(mynet):
    assert build({"_target_": "mynet.Net", "width": 3}, depth=5).depth == 5
    net = {"_target_": "mynet.Net", "width": {"_target_": "pathlib.PurePosixPath", "_args_": ["a", "b"]}}
    for nested in (net, [net], {"first": [net]}):
        built = build(OmegaConf.create({"task": {"_target_": "mynet.Task", "net": nested}}).task).net
        found = built["first"] if isinstance(built, dict) else built
        assert (found[0] if isinstance(found, list) else found).width == PurePosixPath("a/b")
    assert build({"_target_": "mynet.Task", "net": net, "_recursive_": False}).net == net
    assert build({"_target_": "operator.add", "_args_": [1, 2]}) == 3
    part = build({"_target_": "mynet.Task", "net": {"_target_": "mynet.Net", "_partial_": True, "depth": 7}})
    assert isinstance(part.net, partial)
    assert part.net(1).depth == 7


def test_a_base_class_is_checked_before_a_class_is_called_and_after_a_function(mynet):
    assert build({"_target_": "mynet.passes_on"}, base=object).width == 3
    with pytest.raises(ConfigError, match=r"^_target_=mynet\.passes_on returns a Net, not a Module\.$"):
        build({"_target_": "mynet.passes_on"}, base=torch.nn.Module)
    with pytest.raises(ConfigError, match=r"^_target_=mynet\.Net is not a Module; name a class derived from torch\."):
        build({"_target_": "mynet.Net", "no": "such argument"}, base=torch.nn.Module)


def test_a_module_of_the_other_lightning_package_is_named(monkeypatch: pytest.MonkeyPatch):
    twin = type("LightningModule", (), {"__module__": "pytorch_lightning.core.module"})
    module = types.ModuleType("mynet_twin")
    module.Net = type("Net", (twin,), {"__module__": "mynet_twin"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mynet_twin", module)
    with pytest.raises(ConfigError, match=r"uses the package pytorch_lightning: import lightning\.pytorch instead\."):
        build({"_target_": "mynet_twin.Net"}, base=torch.nn.Module)


def test_targets_are_found_at_any_depth():
    config = {"_target_": "a", "x": [{"y": {"_target_": "b"}}, {"_target_": 3}], "z": {"w": 1}}
    assert list(targets(config)) == [("", "a"), ("x[0].y", "b"), ("x[1]", 3)]
    assert import_target_or_none("torch.optim.Adamm") is None
    assert [accepts(torch.nn.Linear, name) for name in ("bias", "num_classes")] == [True, False]
    assert [accepts_any(target) for target in (torch.nn.Linear, dict, lambda **kwargs: 0)] == [False, False, True]


def test_a_user_error_of_the_constructor_is_passed_on(mynet):
    with pytest.raises(DataError, match="^data.root=/x: no images$"):
        build({"_target_": "mynet.no_images", "root": "/x"})


@pytest.mark.parametrize(("target", "kind"), [("mynet.bug", KeyError), ("mynet.inner_type_error", TypeError)])
def test_a_bug_in_the_constructor_keeps_its_type_and_traceback(mynet, target, kind):
    with pytest.raises(kind) as caught:
        build({"_target_": target, "x": 3})
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == target.split(".")[1]


def test_a_wrong_or_missing_key_is_reported_with_its_target_and_path(mynet):
    config = OmegaConf.create({"task": {"_target_": "mynet.Task", "net": {"_target_": "mynet.Net", "wdth": 3}}})
    for node in (config.task, config.task.net):
        with pytest.raises(ConfigError, match=r"^task\.net: mynet\.Net takes no 'wdth'; did you mean width\?$"):
            build(node)
    with pytest.raises(ConfigError, match="takes no 'wdth'"):
        build({"_target_": "mynet.Net", "_partial_": True, "wdth": 3})
    with pytest.raises(ConfigError, match=r"^mynet\.Net cannot be called .*'width'"):
        build({"_target_": "mynet.Net"})
    with pytest.raises(ConfigError, match=r"^_target_=mynet\.passes_on takes no 'dpth' \(.*\); remove it\.$"):
        build({"_target_": "mynet.passes_on", "dpth": 3})


def test_a_key_of_another_optimizer_is_a_config_error():
    weights = [torch.nn.Parameter(torch.ones(2))]
    config = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "momentum": 0.9}
    with pytest.raises(ConfigError, match=r"torch\.optim\.AdamW takes no 'momentum'; it takes .*lr"):
        build(config, weights)
    del config["momentum"]
    assert build(config, weights).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.optim.AdmW", "there is no 'AdmW' in torch.optim; did you mean torch.optim.AdamW?"),
        ("torch.optim.sgd.AdamW", "there is no 'AdamW' in torch.optim.sgd; did you mean torch.optim.AdamW?"),
        ("torch.utils.data.dataset.DataLoader", "; did you mean torch.utils.data.DataLoader?"),
        ("imago.pahts.register_resolvers", "did you mean imago.paths.register_resolvers?"),
        ("imago..paths", "there is no '' in imago."),
        ("not_installed_here.Net", "there is no package 'not_installed_here' here"),
        (".os", "there is no package '' here"),
        ("torch.optim", "is a module; a _target_ names a class or a function."),
        (3, "a _target_ is the dotted name of a class or function."),
    ],
)
def test_a_target_that_does_not_exist_suggests_the_nearest_one(target, message):
    config = OmegaConf.create({"data": {"_target_": target}})
    with pytest.raises(ConfigError, match=f"^data._target_={target}.*{re.escape(message)}"):
        build(config.data)


@pytest.mark.parametrize(
    ("module", "kind", "words"),
    [("needs_absent", ModuleNotFoundError, "absent_package_of_a_test"), ("broken", AttributeError, "no_such_name")],
)
def test_a_module_that_fails_to_import_keeps_its_own_exception(mynet, module, kind, words):
    with pytest.raises(kind, match=words) as caught:
        build({"_target_": f"mynet.{module}.Net"})
    assert f"{module}.py" in traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert caught.value.__cause__ is None
