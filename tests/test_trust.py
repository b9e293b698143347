"""What a checkpoint or run directory names is not executed; classes of src/, known and trusted ones are accepted."""

import copy
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pickled_calls import Calls
from warm_runs import TINY, WarmRuns

from imago.cli.resume import check_saved_outputs, check_saved_settings, resume_arguments
from imago.errors import ConfigError, DataError, UserError
from imago.inference.data_settings import read_data_settings
from imago.inference.load import load_classifier
from imago.instantiate import build
from imago.paths import PROJECT_ROOT
from imago.runs.checkpoint import write_checkpoint
from imago.trust import check_saved_targets, without_files

# MARKER is a file that the target would write, DIR holds files that write it when they are read.
TOUCH = "touch MARKER"
PICKLE, CODE = "DIR/evil.pkl", "open('MARKER', 'w')"
LOCAL: dict[str, dict[str, Any]] = {
    "os.system": {"command": TOUCH},
    "os.popen": {"cmd": TOUCH},
    "os.mkdir": {"path": "MARKER"},
    "subprocess.Popen": {"args": TOUCH, "shell": True},
    "subprocess.run": {"args": ["touch", "MARKER"]},
    "builtins.eval": {"_args_": [CODE]},
    "builtins.exec": {"_args_": [CODE]},
    "builtins.open": {"file": "MARKER", "mode": "w"},
    "pathlib.Path.touch": {"_args_": [{"_target_": "pathlib.Path", "_args_": ["MARKER"]}]},
    "shutil.copy": {"src": PICKLE, "dst": "MARKER"},
    "runpy.run_path": {"path_name": "DIR/hubconf.py"},
    "site.addsitedir": {"sitedir": "DIR"},
    "torch.load": {"f": PICKLE, "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "DIR", "model": "x", "source": "local"},
    "torchvision.models._api.load_state_dict_from_url": {
        **{"url": "file://DIR/evil.pkl", "model_dir": "DIR/cache", "weights_only": False}
    },
    "joblib.load": {"filename": PICKLE},
    "pandas.read_pickle": {"filepath_or_buffer": PICKLE},
    "numpy.load": {"file": PICKLE, "allow_pickle": True},
    "imago.paths.os.path.os.system": {"command": TOUCH},
    "imago.files.write_json": {"path": {"_target_": "pathlib.Path", "_args_": ["MARKER"]}, "content": "x"},
    "imago.inference.load.Path.touch": {"_args_": [{"_target_": "pathlib.Path", "_args_": ["MARKER"]}]},
    "lightning.pytorch.LightningModule.load_from_checkpoint": {"checkpoint_path": PICKLE, "weights_only": False},
    "timm.models.load_checkpoint": {
        **{"model": {"_target_": "torch.nn.Linear", "_args_": [1, 1]}, "checkpoint_path": PICKLE},
        "weights_only": False,
    },
    "imago.model.simple_cnn.SimpleCNN": {"x": {"_target_": "os.system", "command": TOUCH}},
    "torch.nn.Sequential": {"_args_": [{"_target_": "torch.nn.ReLU"}, {"_target_": "os.system", "command": TOUCH}]},
}
# These would import or download something, or need more than plain data.
OTHERS: list[dict[str, Any]] = [
    {"_target_": "hydra.utils.call", "_args_": [{"_target_": "os.system", "_args_": [TOUCH]}], "_recursive_": False},
    {"_target_": "importlib.import_module", "name": "antigravity"},
    {"_target_": "functools.partial", "_args_": ["os.system", TOUCH]},
    {"_target_": "timm.create_model", "model_name": "hf-hub:some/model"},
    {"_target_": "timm.create_model", "model_name": "local-dir:DIR"},
    {"_target_": "timm.create_model", "_args_": ["hf-hub:some/model"]},
    {"_target_": "torchvision.models.get_model_weights", "name": "resnet18"},
    {"_target_": "torch.nn.os.system", "command": TOUCH},
    {"_target_": "torchmetrics.classification.Metric.__init__.__globals__"},
    {"_target_": "lightning.pytorch.Trainer.__init__"},
    {"_target_": "imago.training.trial.run_trial", "overrides": [], "run_dir": "DIR"},
    {"_target_": "train.main"},
    {"_target_": ["os", "system"]},
    {"_target_": None},
]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A directory with files that write MARKER when they are read; they are for `fill`."""
    import pickle

    folder, marker = tmp_path / "evil", tmp_path / "marker"
    folder.mkdir()
    (folder / "evil.pkl").write_bytes(pickle.dumps(Calls(open, str(marker), "w")))
    (folder / "hubconf.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "x.pth").write_text(f"import os; open({str(marker)!r}, 'w')\n")
    return folder


def fill(node: dict[str, Any], evil: Path) -> dict[str, Any]:
    text = json.dumps(node).replace("MARKER", str(evil.parent / "marker")).replace("DIR", str(evil))
    return json.loads(text)


def local(name: str) -> dict[str, Any]:
    return {"_target_": name, **LOCAL[name]}


@pytest.mark.parametrize("name", [name for name in LOCAL if name != "imago.model.simple_cnn.SimpleCNN"])
@pytest.mark.filterwarnings("ignore")
def test_each_of_these_targets_would_write_the_marker(evil: Path, name: str):
    with suppress(Exception):
        built = build(fill(local(name), evil))
        built.wait() if name == "subprocess.Popen" else built.close() if name == "os.popen" else None
    assert (evil.parent / "marker").exists()


NET = {"_target_": "imago.model.simple_cnn.SimpleCNN", "hidden_features": 4}
F1 = {"_target_": "torchmetrics.classification.MulticlassF1Score"}
SHAPES = {"_target_": "imago.data.shapes.ShapesDataModule", "batch_size": 4}


def read_each_place(node: Any, folder: Path) -> None:
    """Pass a node to everything that reads saved settings; each must refuse it."""
    record = {"size": 8, "resize": 8, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}
    hyper = {"net": NET, "metrics": {"f1": F1}, "class_names": ["a", "b"], "preprocess": record}
    nested = {"x": [{"y": node}]}
    for part in ({"net": node}, {"net": NET | nested}, {"metrics": {"x": node}}, {"metrics": {"f1": F1 | nested}}):
        saved = {"imago": {"schema": 2}, "state_dict": {}, "hyper_parameters": hyper | part}
        write_checkpoint(saved, folder / "x.ckpt")
        with pytest.raises(UserError):
            load_classifier(folder / "x.ckpt")
    for data in (node, SHAPES | nested):
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "trust": ["os", "builtins"]}))
        with pytest.raises(UserError):
            read_data_settings(folder, [])
    own = {"model": NET, "callbacks": {}, "data": SHAPES, "metrics": {"f1": F1}, "loss": {}, "trainer": {}}
    for path in ("model", "callbacks.mine", "data.augment.extra", "metrics.f1.x", "trainer.plugins", "loss.x.y"):
        config: Any = copy.deepcopy(own)
        *parts, last = path.split(".")
        below = config
        for part in parts:
            below = below.setdefault(part, {})
        below[last] = node
        with pytest.raises(ConfigError) as caught:
            check_saved_settings(config, own, folder, [])
        assert all(line.startswith(f"{folder}/provenance.json: {path}") for line in str(caught.value).splitlines())


@pytest.mark.parametrize("node", [*map(local, LOCAL), *OTHERS], ids=lambda node: str(node["_target_"]))
def test_no_file_of_a_run_executes_a_target(evil: Path, node: dict[str, Any]):
    read_each_place(fill(node, evil), evil)
    assert not (evil.parent / "marker").exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_network_inside_another_one_reads_no_file(evil: Path, key: str):
    read_nested = NET | {"x": {"_target_": "timm.create_model", "model_name": "resnet18", key: f"{evil}/evil.pkl"}}
    with pytest.raises(ConfigError, match=r"model\.x\._target_=timm\.create_model is neither"):
        check_saved_targets(read_nested, "model", evil)
    check_saved_targets(
        NET | {"x": {"_target_": "timm.create_model", "model_name": "resnet18", key: None}}, "model", evil
    )
    assert without_files({"_target_": "x", key: "file", "weights_path": 3, "width": 4}, evil) == {
        **{"_target_": "x", key: None, "weights_path": None, "width": 4}
    }
    with pytest.raises(DataError, match="the argument width of the network is not plain data"):
        without_files({"width": torch.ones(1)}, evil)


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("model", {"_target_": "torchvision.models.resnet18"}),
        ("model", {"_target_": "timm.create_model", "model_name": "lcnet_100.ra2_in1k"}),
        ("model", {"_target_": "torch.nn.Linear"}),
        ("task.net", NET),
        ("task", {"_target_": "imago.task.distillation.DistillationTask", "net": NET}),
        ("data", SHAPES),
        ("loss", {"_target_": "torch.nn.CrossEntropyLoss"}),
        ("metrics", {"f1": F1, "auroc": {"_target_": "torchmetrics.classification.MulticlassAUROC"}}),
        ("optimizer", {"_target_": "torch.optim.NAdam"}),
        ("schedule", {"_target_": "torch.optim.lr_scheduler.StepLR"}),
        ("callbacks", {"a": {"_target_": "lightning.pytorch.callbacks.EarlyStopping"}, "b": None}),
        ("logger", {"a": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}),
        ("augment", {"extra": [{"_target_": "torchvision.transforms.v2.RandomInvert"}]}),
        ("trainer", {"_target_": "lightning.pytorch.Trainer"}),
    ],
)
def test_known_classes_are_accepted_in_their_own_group_only(tmp_path: Path, path: str, node: dict[str, Any]):
    check_saved_targets(node, path, tmp_path)
    for other in {"optimizer", "data", "logger.x"} - {path}:
        if "_target_" in node:
            with pytest.raises(ConfigError, match="is neither"):
                check_saved_targets(node, other, tmp_path)


def test_trust_accepts_a_package_and_no_other(tmp_path: Path):
    node = {"_target_": "othernet.tiny.Net", "x": {"_target_": "othernet2.Part"}}
    with pytest.raises(ConfigError, match=r"model\.x\._target_=othernet2\.Part .*type trust=\[othernet2\]\.$"):
        check_saved_targets(node, "model", tmp_path, ["othernet"])
    check_saved_targets(node, "model", tmp_path, ["othernet", "othernet2"])
    check_saved_targets(node, "model", tmp_path, ["othernet.tiny.Net", "othernet2"])
    check_saved_targets(node, "model", tmp_path, known={"othernet.tiny.Net", "othernet2.Part"})


@pytest.mark.parametrize("name", ["torch.hub.load", "torch.load", "pandas.read_pickle", "joblib.load"])
def test_trust_of_a_library_does_not_include_its_functions(tmp_path: Path, name: str):
    node = {"_target_": name}
    with pytest.raises(ConfigError, match=rf"model\._target_={name} .* it was changed after saving\.$"):
        check_saved_targets(node, "model", tmp_path, [name.partition(".")[0]])
    check_saved_targets({"_target_": "torchvision.ops.MLP"}, "model", tmp_path, ["torchvision"])
    with pytest.raises(ConfigError, match=r"type trust=\[torchvision\]\.$"):
        check_saved_targets({"_target_": "torchvision.ops.MLP"}, "model", tmp_path)


@pytest.mark.parametrize(
    "key", ["logger.csv.path", "logger.tensorboard.save_dir", "callbacks.image_grid.dirpath", "callbacks.x.dirpath"]
)
def test_saved_settings_write_below_the_run_directory_only(tmp_path: Path, key: str):
    group, name, argument = key.split(".")

    def check(saved: str, typed: str) -> None:
        config, own = ({group: {name: {argument: value}}} for value in (saved, typed))
        check_saved_outputs(config, own, tmp_path / "run")

    check(str(tmp_path / "run" / "x"), "${paths.run_dir}/x")
    check("${paths.run_dir}/y", "${paths.run_dir}/x")
    check("/elsewhere", "/elsewhere")
    for outside in (
        "/elsewhere",
        "${paths.run_dir}/../x",
        "${paths.log_dir}/x",
        str(tmp_path / "run" / ".." / "x"),
        str(tmp_path / "running"),
    ):
        with pytest.raises(DataError, match=rf"{key}={re.escape(outside)} is outside the run directory; type it again"):
            check(outside, "${paths.run_dir}/x")


# Saved overrides


@pytest.mark.parametrize(
    "override",
    [
        *("--config-dir=DIR", "-cd=DIR", "--config-path=DIR", "--experimental-rerun=DIR/x", "-m", "-c=job", "x"),
        *("hydra.searchpath=[file://DIR]", "+hydra.job.env_set.PYTHONSTARTUP=DIR/hubconf.py", "hydra/launcher=x"),
        *("+x@hydra.y=z", "hydra={run: {dir: /}}", "model=../../x", "model=/DIR/x", "model=[simple_cnn,../x]"),
        *(
            "+model@task.teacher=../x",
            "model='../x'",
            "model=${oc.env:HOME}",
            "model=${oc.${x}:HOME}",
            "+experiment/../../x=y",
            "../x=y",
        ),
        *("trust.0=os", "trust[0]=os", "resume@trust=x", "override model=x", "x={_target_: '${oc.decode:os.mkdir}'}"),
    ],
)
def test_saved_overrides_are_settings_only(tmp_path: Path, override: str):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "provenance.json").write_text(json.dumps({"overrides": ["seed=1", override]}))
    reasons = "it was changed after saving|names no file in configs/|reads something outside the run"
    with pytest.raises(DataError, match=rf"provenance\.json: .*({reasons})"):
        resume_arguments([f'resume="{tmp_path}"'], tmp_path)


@pytest.fixture(scope="module")
def run(runs: WarmRuns) -> Path:
    runs.run(*TINY, "trainer.max_epochs=2", "run_name=short")
    return runs.logs / "train" / "short"


SLOW = "+callbacks.mine={_target_: interruptions.Slow, seconds: 0.0}"
TESTS = {"PYTHONPATH": str(PROJECT_ROOT / "tests")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["+callbacks.x={_target_: os.system, command: 'touch MARKER'}"],
        ["callbacks.x._target_=site.addsitedir", "callbacks.x.sitedir=DIR"],
        ["+callbacks.x={y: [{_target_: os.mkdir, path: MARKER}]}"],
        ["data._target_=subprocess.getoutput", "+data.cmd='touch MARKER'"],
        ["note='{_target_: os.mkdir, path: MARKER}'", "callbacks.image_grid=${oc.decode:${note}}"],
        ["task._target_=os.mkdir", "+task.path=MARKER"],
    ],
)
def test_resuming_a_changed_run_executes_nothing(run: Path, evil: Path, command: Callable, overrides: list[str]):
    file = run / "provenance.json"
    saved = json.loads(file.read_text())
    changed = [*saved["overrides"], *fill({"x": overrides}, evil)["x"]]
    file.write_text(json.dumps(saved | {"overrides": changed}))
    try:
        done = command("src/train.py", f"resume={run}", "trainer.max_epochs=3", f"paths.log_dir={run.parents[1]}")
    finally:
        file.write_text(json.dumps(saved))
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.endswith(": left out.")]
    assert all(line.startswith("error: ") for line in lines), done.stderr
    assert not (evil.parent / "marker").exists()


@pytest.mark.slow
def test_what_is_typed_now_is_accepted_and_what_was_typed_before_needs_trust(run: Path, command: Callable):
    resume = ("src/train.py", f"resume={run}", f"paths.log_dir={run.parents[1]}")
    done = command(*resume, "trainer.max_epochs=3", SLOW, **TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    done = command(*resume, "trainer.max_epochs=4", **TESTS)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {run}/provenance.json: callbacks.mine._target_=interruptions.Slow is neither"
    )
    assert done.stderr.endswith("type trust=[interruptions].\n")
    done = command(*resume, "trainer.max_epochs=4", "trust=[interruptions]", **TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    done = command(*resume, "trainer.max_epochs=5", "callbacks.mine=null")  # trust is not saved
    assert done.returncode == 0, done.stdout + done.stderr
