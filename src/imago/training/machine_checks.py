"""Check what this machine can do for a run: devices, precision, compilation, optimizer and weights files."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from imago.data.file_datamodule import ImageFolderDataModule
from imago.data.folder_listing import find_splits
from imago.errors import ConfigError
from imago.instantiate import full_name
from imago.model.adapt import find_weights
from imago.model.weights import read_weights
from imago.resources import available_cores, choose_threads
from imago.system import IS_POSIX
from imago.task.optimization import check_optimization
from imago.text import counted, first_line
from imago.training.monitors import set_modes
from imago.training.other_task import is_image_task

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of compile
_MAX_REASON_CHARS = 200  # of a message, which may contain a long compiler command; our own choice


def prepare_machine(cfg: DictConfig) -> tuple[str, str]:
    """Check devices, precision, compiler, optimizer and weights file; set the number of CPU threads.

    `threads` of the settings is replaced by the number of threads of this process, and on a CPU `trainer.devices` by
    the number of processes.

    Return what `choose_precision` returns.

    Raises:
        ConfigError: if the devices, the precision, the compiler, the optimizer or the schedule do not work here.
        DataError: if the weights file is missing or damaged.
    """
    accelerator = cfg.trainer.accelerator
    num_devices = count_devices(accelerator, cfg.trainer.devices)
    if not IS_POSIX and (num_devices * cfg.trainer.num_nodes > 1 or "fork" in str(cfg.trainer.strategy)):
        typed = f"trainer.devices={cfg.trainer.devices} trainer.strategy={cfg.trainer.strategy}"
        raise ConfigError(f"{typed}: several processes need Linux or macOS; type trainer.devices=1, or use WSL 2.")
    check_torchrun(cfg.trainer.devices, num_devices, cfg.trainer.num_nodes)
    if _device_type(accelerator) == "cpu":
        cfg.trainer.devices = num_devices  # Lightning takes only a number of CPU processes
    check_batch_size(cfg.data.batch_size, num_devices * cfg.trainer.num_nodes)
    set_threads(cfg, num_devices)
    hide_missing_gpus()
    if _device_type(accelerator) == "cuda":
        torch.cuda.set_device(gpu_index(cfg.trainer.devices, num_devices))  # whose precision and compiler are checked
    precision = choose_precision(str(cfg.trainer.precision), accelerator)
    if cfg.compile in CUDA_GRAPH_MODES and cfg.trainer.accumulate_grad_batches != 1:
        typed = f"compile={cfg.compile} trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches}"
        raise ConfigError(f"{typed}: a CUDA graph overwrites the gradients of the last batch; type compile=true.")
    if cfg.compile:
        check_compile(_device_type(accelerator))
    set_modes(cfg)
    if is_image_task(cfg):  # another LightningModule may use other settings
        check_optimization(cfg.optimizer, cfg.schedule)
    if cfg.data._target_ == full_name(ImageFolderDataModule):
        find_splits(Path(cfg.data.root).expanduser())  # a missing folder is reported before weights are downloaded
    if cfg.resume is None and (file := find_weights(cfg.model)):
        read_weights(file)  # a damaged file is reported before data is read
    return precision


def set_threads(cfg: DictConfig, num_processes: int) -> None:
    """Set torch's number of threads; `threads=auto` becomes the idle cores, shared with loader workers and processes.

    The number is handed on in OMP_NUM_THREADS, the variable that torch reads: to the ranks that this process starts and
    to the next trials of a sweep. If the variable is set, `threads=auto` keeps its number.
    """
    cfg.threads = choose_threads(cfg.threads, num_processes, cfg.data.num_workers or 0)
    os.environ["OMP_NUM_THREADS"] = str(cfg.threads)
    torch.set_num_threads(cfg.threads)


def hide_missing_gpus() -> None:
    """Let torch see without NVIDIA's library that there is no GPU: its optimizers ask before each step, for 0.1 ms."""
    if not torch.cuda.is_available():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def count_devices(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Return the number of processes on this machine that `trainer.devices` asks for; on a CPU, at most one per core.

    Raises:
        ConfigError: if the machine has fewer devices.
    """
    device_type = _device_type(accelerator)
    num_available = available_cores() if device_type == "cpu" else torch.accelerator.device_count()
    if devices in ("auto", -1, "-1"):
        return 1 if device_type == "cpu" else num_available
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        raise ConfigError(f"trainer.devices={devices} must be a number, a list such as [0,1], or auto.")
    num_wanted = int(devices) if isinstance(devices, (int, str)) else len(devices)
    if num_wanted < 1 or not (isinstance(devices, (int, str)) or all(isinstance(index, int) for index in devices)):
        raise ConfigError(f"trainer.devices={devices} must be 1 or more, or auto.")
    if num_wanted > num_available:
        noun, remedy = "GPU", f"; trainer.accelerator=cpu trainer.devices={num_wanted} uses CPU cores"
        if device_type == "cpu":
            noun, remedy = "CPU core", ""
        plural = "s" if num_available != 1 else ""
        raise ConfigError(f"trainer.devices={devices}: this machine has {num_available} {noun}{plural}{remedy}.")
    return num_wanted


def gpu_index(devices: int | str | Sequence[int], num_devices: int) -> int:
    """Return the index of the GPU of this process; Lightning and torchrun set LOCAL_RANK, SLURM its own variable."""
    rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    indices = range(num_devices) if isinstance(devices, (int, str)) else devices
    return indices[rank % num_devices]


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Check that the global batch divides evenly between the processes.

    Raises:
        ConfigError: with the nearest sizes that do.
    """
    if batch_size % num_processes:
        lower = batch_size // num_processes * num_processes
        divisible = " or ".join(f"data.batch_size={size}" for size in (lower, lower + num_processes) if size)
        raise ConfigError(
            f"data.batch_size={batch_size} must be divisible by the {num_processes} processes; use {divisible}."
        )


def choose_precision(setting: str, accelerator: str) -> tuple[str, str]:
    """Translate the typed `trainer.precision` to Lightning's name of a precision, and return why it was chosen.

    Raises:
        ConfigError: for fp16 without a GPU.
    """
    is_on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if setting == "16-mixed" and not is_on_gpu:
        raise ConfigError("trainer.precision=16-mixed needs a GPU; use trainer.precision=auto.")
    if setting != "auto":
        return setting, "as typed"
    if is_on_gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name()} computes in bf16"
        return "32-true", f"{torch.cuda.get_device_name()} has no bf16; trainer.precision=16-mixed may be faster"
    if accelerator in ("auto", "cpu") and _cpu_has_bf16():
        return "bf16-mixed", "this CPU computes in bf16"
    return "32-true", "no bf16 on this machine"


def check_torchrun(devices: object, num_devices: int, num_nodes: int) -> None:
    """Check that torchrun, if it started this process, started as many as the settings say.

    Raises:
        ConfigError: if not: some would train alone, or wait for others.
    """
    if not torch.distributed.is_torchelastic_launched():
        return
    per_node, total = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if (per_node, total) == (num_devices, num_devices * num_nodes):
        return
    started = f"torchrun started {counted(per_node, 'process', 'processes')} here and {total} in all"
    remedy = f"type trainer.devices={per_node} trainer.num_nodes={total // per_node}"
    if total % per_node:
        remedy = "start it with the same --nproc-per-node on each node"
    raise ConfigError(f"{started}, for trainer.devices={devices} trainer.num_nodes={num_nodes}; {remedy}.")


def check_compile(device_type: str = "cpu") -> None:
    """Compile a small function for a device, so that a missing compiler is reported before data is read.

    Raises:
        ConfigError: if torch cannot compile here: no C++ compiler, no headers of Python, or a Python that is too new.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device_type))
    except RuntimeError as error:
        reason = first_line(error)[:_MAX_REASON_CHARS]
        raise ConfigError(
            f"compile=true: torch cannot compile here ({reason}); install a C++ compiler such as g++ and the "
            "headers of Python, or type compile=false."
        ) from error


def _device_type(accelerator: str) -> str:
    """Return cpu, cuda or mps."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None and accelerator == "gpu":
        raise ConfigError("trainer.accelerator=gpu: torch finds no GPU; use trainer.accelerator=auto for the CPU.")
    return device.type if device else "cpu"


def _cpu_has_bf16() -> bool:
    # Older releases that pyproject.toml allows do not have the function.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
