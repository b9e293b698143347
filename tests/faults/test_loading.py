"""A checkpoint that was made to execute code executes none, in every function that reads it."""

import builtins
import os
from pathlib import Path

import pytest
import torch
from pickled_calls import Calls

from imago.errors import ConfigError, DataError, UserError
from imago.inference.load import load_classifier
from imago.runs.checkpoint import AtomicCheckpointIO, check_loadable, read_checkpoint, write_checkpoint

PAYLOADS = {
    "os.system": lambda target: Calls(os.system, f"touch {target}"),
    "builtins.open": lambda target: Calls(builtins.open, str(target), "w"),
    "eval": lambda target: Calls(eval, f"open({str(target)!r}, 'w')"),
    "pathlib": lambda target: Calls(Path.touch, target),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_pickled_call_is_never_made(tmp_path: Path, payload: str):
    target, file = tmp_path / "ran", tmp_path / "last.ckpt"
    for entry in ("hyper_parameters", "state_dict", "callbacks"):
        state = {"imago": {"schema": 2}, "state_dict": {}, "hyper_parameters": {}}
        torch.save(state | {entry: {"x": PAYLOADS[payload](target)}}, file)
        for read in (read_checkpoint, load_classifier, AtomicCheckpointIO().load_checkpoint):
            with pytest.raises(DataError, match="holds more than plain data and tensors"):
                read(file)
    assert not target.exists()


def test_the_instantiator_of_lightning_is_not_called(tmp_path: Path):
    """`_instantiator` in the hyperparameters names a function that `load_from_checkpoint` imports and calls."""
    record = {"size": 8, "resize": 8, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}
    net = {"_target_": "imago.model.simple_cnn.SimpleCNN"}
    hyper = {"net": net, "class_names": ["ant", "bee"], "preprocess": record}
    hyper |= {"_instantiator": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    write_checkpoint({"imago": {"schema": 2}, "state_dict": {}, "hyper_parameters": hyper}, tmp_path / "x.ckpt")
    with pytest.raises(UserError):
        load_classifier(tmp_path / "x.ckpt")  # the weights are missing, too
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [Path("a"), lambda: 1, torch.nn.Linear(1, 1), {"deep": [object()]}, torch.optim.SGD, open],
    ids=["path", "lambda", "module", "object deep inside", "class", "function"],
)
def test_a_hyper_parameter_that_would_not_load_again_is_refused_before_training(value: object):
    with pytest.raises(ConfigError, match="task: its hyperparameter mine="):
        check_loadable({"net": {"lr": 0.1}, "mine": value})


def test_plain_hyper_parameters_and_tensors_pass():
    check_loadable(
        {"net": {"lr": 0.1, "names": ["ant"], "on": True}, "weight": torch.ones(2), "none": None, "size": (1, 2)}
    )
