"""Targets of a config: the allowed ones are built, others are refused, wrong names and keys are explained."""

import re
import sys
import traceback

import pytest
import torch
from omegaconf import OmegaConf

from imago.errors import ConfigError, DataError
from imago.instantiate import ALLOWED_TARGETS, build, check_targets, import_target_or_none

MODULE = """
import os
from imago.errors import DataError

class Net:
    def __init__(self, width, depth=2):
        self.width, self.depth = width, depth

class Task:
    def __init__(self, net):
        self.net = net

def no_images(root):
    raise DataError(f"data.root={root}: no images")

def bug(x):
    return {}[x]

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


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.hub.load", "lightning.pytorch.LightningModule.load_from_checkpoint", "imago", "torch.optim"],
)
def test_a_target_outside_the_list_is_refused_with_its_key_and_the_way_out(target):
    with pytest.raises(ConfigError, match=r"extra_targets: \[mynet\.\*\]") as caught:
        check_targets({"callbacks": [{"_target_": "imago.callbacks.Ok"}, {"_target_": target}]})
    assert f"callbacks[1]._target_={target} is not allowed" in str(caught.value)


def test_every_name_on_the_list_exists_and_is_allowed():
    names = [name for name in ALLOWED_TARGETS if not name.endswith(".*")]
    assert [name for name in names if import_target_or_none(name) is None] == []
    assert import_target_or_none("torch.optim.Adamm") is None
    check_targets([{"_target_": name} for name in [*names, "imago.model.X", "torch.optim.AdamW"]])


def test_a_target_that_an_interpolation_repeats_is_reported_once():
    config = OmegaConf.create({"model": {"_target_": "os.system"}, "task": {"net": "${model}"}})
    with pytest.raises(ConfigError) as caught:
        check_targets(config)
    assert str(caught.value).count("is not allowed") == 1


def test_extra_targets_allow_a_package_of_the_user(mynet):
    config = {"_target_": "mynet.Net", "width": 3}
    with pytest.raises(ConfigError, match="is not allowed"):
        build(config)
    assert build(config, extra_targets=["mynet.*"], depth=5).depth == 5


def test_extra_targets_do_not_allow_what_the_package_imports(mynet):
    with pytest.raises(ConfigError, match=r"os\.system"):
        build({"_target_": "mynet.os.system", "command": "true"}, extra_targets=["mynet.*"])


@pytest.mark.parametrize("extra", [["*"], [".*"], ["my*"], [3], ["a.*.b"]])
def test_extra_targets_of_another_form_are_refused(extra):
    with pytest.raises(ConfigError, match=r"extra_targets=\[mynet\.\*\]"):
        check_targets({}, extra)


def test_a_whitelist_inside_a_config_is_refused():
    with pytest.raises(ConfigError, match="_execution_whitelist_"):
        build({"_target_": "imago.images.Preprocess", "_execution_whitelist_": ["os.*"]})


def test_a_user_error_of_the_constructor_is_passed_on(mynet):
    with pytest.raises(DataError, match="^data.root=/x: no images$"):
        build({"_target_": "mynet.no_images", "root": "/x"}, extra_targets=["mynet.*"])


@pytest.mark.parametrize(("target", "kind"), [("mynet.bug", KeyError), ("mynet.inner_type_error", TypeError)])
def test_a_bug_in_the_constructor_keeps_its_type_and_traceback(mynet, target, kind):
    with pytest.raises(kind) as caught:
        build({"_target_": target, "x": 3}, extra_targets=["mynet.*"])
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == target.split(".")[1]


def test_a_wrong_or_missing_key_is_reported_with_its_target_and_path(mynet):
    config = OmegaConf.create({"task": {"_target_": "mynet.Task", "net": {"_target_": "mynet.Net", "wdth": 3}}})
    with pytest.raises(ConfigError, match=r"^task\.net: mynet\.Net takes no 'wdth'; did you mean width\?$"):
        build(config.task.net, extra_targets=["mynet.*"])
    with pytest.raises(ConfigError, match=r"^mynet\.Net cannot be called .*'width'"):
        build({"_target_": "mynet.Net"}, extra_targets=["mynet.*"])


def test_a_wrong_key_of_a_partial_is_reported_when_it_is_built(mynet):
    with pytest.raises(ConfigError, match="takes no 'wdth'"):
        build({"_target_": "mynet.Net", "_partial_": True, "wdth": 3}, extra_targets=["mynet.*"])
    assert build({"_target_": "mynet.Net", "_partial_": True, "depth": 3}, extra_targets=["mynet.*"])(1).depth == 3


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
        ("lightning.pytorch.callbacks.ModelCheckpont", "Did you mean lightning.pytorch.callbacks.ModelCheckpoint?"),
        ("torch.optim.AdmW", "there is no 'AdmW' in torch.optim; did you mean torch.optim.AdamW?"),
        ("imago.pahts.register_resolvers", "did you mean imago.paths.register_resolvers?"),
        ("imago..paths", "there is no '' in imago."),
        ("not_installed_here.Net", "there is no package 'not_installed_here' here"),
    ],
)
def test_a_target_that_does_not_exist_suggests_the_nearest_one(target, message):
    config = OmegaConf.create({"data": {"_target_": target}})
    with pytest.raises(ConfigError, match=f"^data._target_={target}.*{re.escape(message)}"):
        build(config.data, extra_targets=["not_installed_here.*"])


@pytest.mark.parametrize(
    ("module", "kind", "words"),
    [("needs_absent", ModuleNotFoundError, "absent_package_of_a_test"), ("broken", AttributeError, "no_such_name")],
)
def test_a_module_that_fails_to_import_keeps_its_own_exception(mynet, module, kind, words):
    with pytest.raises(kind, match=words) as caught:
        build({"_target_": f"mynet.{module}.Net"}, extra_targets=["mynet.*"])
    assert f"{module}.py" in traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert caught.value.__cause__ is None


def test_our_own_functions_are_not_called_at_any_depth(tmp_path):
    (tmp_path / "victim").write_text("unchanged")
    writes = {"_target_": "imago.files.write_json", "path": str(tmp_path / "victim"), "content": "x"}
    with pytest.raises(ConfigError, match="imago.files.write_json is not a class"):
        build(writes)
    with pytest.raises(ConfigError, match="takes no 'x'"):
        build({"_target_": "imago.model.simple_cnn.SimpleCNN", "num_classes": 2, "image_size": 32, "x": writes})
    assert (tmp_path / "victim").read_text() == "unchanged"
