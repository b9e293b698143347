"""Devices, precision and batch size are checked before data is read."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import SHORT
from torch._subclasses import FakeTensorMode
from warm_python import warm_hydra

from imago import resources
from imago.errors import ConfigError, DataError
from imago.training import machine_checks
from imago.training.machine_checks import (
    check_batch_size,
    check_compile,
    check_torchrun,
    choose_precision,
    count_devices,
    gpu_index,
    hide_missing_gpus,
    prepare_machine,
    set_threads,
)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "available_cores", lambda: 2)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)


def test_devices_may_be_a_number_a_list_or_auto(two_cores):
    assert [count_devices("cpu", wanted) for wanted in (1, 2, "2", [0, 1], "auto")] == [1, 2, 2, 2, 1]


@pytest.mark.parametrize(("typed", "number"), [("-1", 1), ("[0,1]", 2), ("[1]", 1), ("auto", 1)])
def test_on_a_cpu_lightning_gets_the_number_of_processes(
    two_cores, torch_threads: None, compose: Callable, typed: str, number: int
):
    cfg = compose("data=shapes", "trainer.accelerator=cpu", f"trainer.devices={typed}")
    prepare_machine(cfg)
    assert cfg.trainer.devices == number


@pytest.mark.parametrize(
    ("accelerator", "devices", "text"),
    [
        ("cpu", 3, r"trainer.devices=3: this machine has 2 CPU cores\.$"),
        ("cuda", 2, "has 1 GPU; trainer.accelerator=cpu trainer.devices=2 uses CPU cores"),
        ("cpu", 0, "trainer.devices=0 must be 1 or more"),
        ("cpu", ["a"], r"trainer.devices=\['a'\] must be 1 or more"),
        ("cpu", -2, "trainer.devices=-2 must be 1 or more"),
        ("cpu", "all", "trainer.devices=all must be a number, a list"),
    ],
)
def test_devices_that_the_machine_does_not_have_are_refused(two_cores, accelerator: str, devices: int | str, text: str):
    with pytest.raises(ConfigError, match=text):
        count_devices(accelerator, devices)


@pytest.fixture
def torch_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four idle cores; the environment and torch's threads are restored."""
    monkeypatch.setattr(resources, "idle_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("typed", "variable", "num_processes", "num_workers", "threads"),
    [
        ("auto", None, 1, None, 4),
        ("auto", None, 2, None, 2),
        ("auto", None, 2, 1, 1),
        ("auto", None, 8, None, 1),
        ("auto", "3", 2, 1, 3),  # typed by the user, or chosen by the first trial of a sweep
        (2, "3", 2, 1, 2),
    ],
)
def test_idle_cores_are_shared_and_the_number_is_handed_on(
    *,
    compose: Callable,
    monkeypatch: pytest.MonkeyPatch,
    torch_threads: None,
    typed: int | str,
    variable: str | None,
    num_processes: int,
    num_workers: int | None,
    threads: int,
):
    cfg = compose("data=shapes")
    cfg.threads, cfg.data.num_workers = typed, num_workers
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    set_threads(cfg, num_processes)
    assert cfg.threads == torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == threads


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    with pytest.raises(ConfigError, match="trainer.accelerator=gpu: torch finds no GPU;"):
        count_devices("gpu", 1)


def test_an_indivisible_batch_names_the_nearest_sizes_that_fit():
    check_batch_size(128, 2)
    with pytest.raises(
        ConfigError, match="data.batch_size=127 must be divisible .* data.batch_size=126 or data.batch_size=128"
    ):
        check_batch_size(127, 2)
    with pytest.raises(ConfigError, match=r"use data.batch_size=4\.$"):
        check_batch_size(3, 4)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_chooses_bf16_if_the_cpu_supports_it(no_gpu, monkeypatch, has_bf16: bool, expected: str):
    monkeypatch.setattr(machine_checks, "_cpu_has_bf16", lambda: has_bf16)
    assert choose_precision("auto", "auto")[0] == expected


def test_a_typed_precision_is_not_changed(no_gpu):
    assert choose_precision("32-true", "cpu") == ("32-true", "as typed")


def test_fp16_without_a_gpu_is_refused(no_gpu):
    with pytest.raises(ConfigError, match="trainer.precision=16-mixed needs a GPU"):
        choose_precision("16-mixed", "auto")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_chooses_bf16_if_the_gpu_supports_it(monkeypatch, has_bf16: bool, expected: str):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card")
    precision, reason = choose_precision("auto", "auto")
    assert precision == expected
    assert reason.startswith("Card")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["optimizer._target_=torch.optim.NAdam"], "optimizer: torch.optim.NAdam takes no 'fused'"),
        (["optimizer=sgd", "optimizer.momentum=0.0"], "optimizer: Nesterov momentum requires a momentum"),
        (["optimizer=torch", "optimizer._target_=torch.optim.Nope"], "optimizer: _target_=torch.optim.Nope: there is"),
        (
            ["optimizer=torch", "optimizer._target_=torch.optim.adamw"],
            "optimizer: _target_=torch.optim.adamw is a module",
        ),
        (["schedule._target_=imago.schedule.nope.Nope"], "schedule._target_=imago.schedule.nope.Nope: there is no"),
        (["+schedule.warmth=1"], "schedule: imago.schedule.schedules.WarmupCosine takes no 'warmth'"),
    ],
)
def test_arguments_that_the_optimizer_or_the_schedule_do_not_take_are_refused(compose, settings: list[str], text: str):
    with pytest.raises(ConfigError) as caught:
        prepare_machine(compose(*settings))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_damaged_weights_file_is_refused_before_data_is_read(compose, tmp_path: Path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"cut\.pth is damaged or not a file of weights"):
        prepare_machine(compose(f"model.weights={tmp_path / 'cut.pth'}"))


def test_a_missing_folder_is_reported_before_weights_are_looked_for(compose, tmp_path: Path):
    settings = ["data=image_folder", f"data.root={tmp_path / 'none'}", f"model.weights={tmp_path / 'none.pth'}"]
    with pytest.raises(DataError, match=rf"^data\.root={tmp_path}/none does not exist; expected ROOT/train/CLASS"):
        prepare_machine(compose(*settings))


@pytest.mark.soak
def test_compile_without_a_compiler_is_refused_in_one_line(tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = {"CXX": str(empty / "c++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    # In a process that has not imported torch yet: torch looks for a compiler when it is imported.
    done = warm_hydra().run("src/train.py", *SHORT, "compile=true", f"paths.log_dir={tmp_path}", **nothing)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: compile=true: torch cannot compile here")
    assert done.stderr.count("\n") == 1


def test_cuda_graphs_are_refused_where_they_would_overwrite_gradients_that_are_still_needed(compose: Callable):
    settings = ("compile=reduce-overhead", "trainer.accumulate_grad_batches=2")
    with pytest.raises(ConfigError, match=rf"^{' '.join(settings)}: .*; type compile=true\.$"):
        prepare_machine(compose("data=shapes", *settings))


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_the_compiler_is_tried_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch, device_type: str):
    compiled: list[torch.device] = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda values: compiled.append(values.device))
    with FakeTensorMode():
        check_compile(device_type)
    assert [device.type for device in compiled] == [device_type]


def test_a_torch_that_does_not_name_the_abilities_of_a_cpu_trains_in_fp32(no_gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", "auto") == ("32-true", "no bf16 on this machine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_optimizers_do_not_load_the_library_of_a_gpu_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hide_missing_gpus()
    loaded: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", loaded.append)
    net = torch.nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(net.parameters()).step()
    assert loaded == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    hide_missing_gpus()  # what is set stays
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("total", "per_node", "devices", "num_nodes", "remedy"),
    [
        (2, 1, 1, 1, "type trainer.devices=1 trainer.num_nodes=2."),
        (2, 1, 2, 1, "type trainer.devices=1 trainer.num_nodes=2."),  # the product is right
        (2, 2, 1, 2, "type trainer.devices=2 trainer.num_nodes=1."),
        (8, 4, 4, 1, "type trainer.devices=4 trainer.num_nodes=2."),
        (1, 1, 2, 1, "type trainer.devices=1 trainer.num_nodes=1."),
        (3, 2, 2, 2, "start it with the same --nproc-per-node on each node."),
    ],
)
def test_torchrun_must_have_started_as_many_processes_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, total: int, per_node: int, devices: int, num_nodes: int, remedy: str
):
    monkeypatch.setenv("WORLD_SIZE", str(total))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
    check_torchrun(devices, devices, num_nodes)  # not started by torchrun: nothing to compare
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError) as error:
        check_torchrun(devices, devices, num_nodes)
    started = f"torchrun started {per_node} process{'es' * (per_node > 1)} here and {total} in all"
    settings = f"trainer.devices={devices} trainer.num_nodes={num_nodes}"
    assert str(error.value) == f"{started}, for {settings}; {remedy}"
    if total % per_node == 0:
        check_torchrun(per_node, per_node, total // per_node)


@pytest.mark.parametrize(
    ("devices", "variables", "index"),
    [
        ([1], {}, 1),
        ([3, 1], {"LOCAL_RANK": "1"}, 1),
        (2, {"LOCAL_RANK": "1"}, 1),
        ("auto", {"SLURM_LOCALID": "1"}, 1),
        (1, {}, 0),
    ],
)
def test_each_process_checks_its_own_gpu(devices: Any, variables: dict[str, str], index: int, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert gpu_index(devices, len(devices) if isinstance(devices, list) else 2) == index
