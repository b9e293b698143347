"""How many devices a run gets, told before any data is read."""

import os
from collections.abc import Sequence

import torch

from imago.errors import ConfigError
from imago.resources import available_cores


def count_devices(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Give the number of processes on this machine that `trainer.devices` asks for.

    On a CPU a device is a process; more of them than cores would only wait for each other.

    Raises:
        ConfigError: if the machine has fewer.
    """
    name = _resolve(accelerator)
    available = _num_available(name)
    if devices in ("auto", -1, "-1"):
        return 1 if name == "cpu" else available
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        raise ConfigError(f"trainer.devices={devices} is neither a number, nor a list such as [0,1], nor auto.")
    wanted = len(devices) if not isinstance(devices, (int, str)) else int(devices)
    if wanted < 1:
        raise ConfigError(f"trainer.devices={devices} must be 1 or more, or auto.")
    if wanted > available:
        noun = {"cuda": "GPU", "mps": "GPU", "cpu": "CPU core"}[name] + ("s" if available != 1 else "")
        way_out = f"; trainer.accelerator=cpu trainer.devices={wanted} runs on CPU cores" if name != "cpu" else ""
        raise ConfigError(f"trainer.devices={devices}: this machine has {available} {noun}{way_out}.")
    return wanted


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Refuse a global batch that cannot be shared out evenly.

    Raises:
        ConfigError: with the nearest sizes that can.
    """
    if batch_size % num_processes:
        lower = batch_size // num_processes * num_processes
        fitting = " or ".join(f"data.batch_size={size}" for size in (lower, lower + num_processes) if size)
        raise ConfigError(
            f"data.batch_size={batch_size} cannot be shared evenly by {num_processes} processes; take {fitting}."
        )


def share_cores(accelerator: str, num_processes: int) -> None:
    """Let the processes of a CPU run share the cores; all of them on every core would mostly wait for each other."""
    if num_processes > 1 and _resolve(accelerator) == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _num_available("cpu") // num_processes))


def _resolve(accelerator: str) -> str:
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        if accelerator == "gpu":
            raise ConfigError(
                "trainer.accelerator=gpu: torch finds no GPU here; trainer.accelerator=auto takes the CPU."
            )
        return "cpu"
    return accelerator


def _num_available(name: str) -> int:
    if name == "cuda":
        return torch.cuda.device_count()
    if name == "mps":
        return 1
    return available_cores()
