"""What this machine can do faster, chosen once and told in the start table."""

import torch

from imago.errors import ConfigError

BF16, FULL = "bf16-mixed", "32-true"


def choose_precision(setting: str, accelerator: str) -> tuple[str, str]:
    """Translate `trainer.precision=auto` for Lightning.

    Args:
        setting: the setting as typed.
        accelerator: `trainer.accelerator` as typed.

    Returns:
        Lightning's name of a precision, and why it was taken.

    Raises:
        ConfigError: for fp16 without a GPU.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if setting == "16-mixed" and not on_gpu:
        raise ConfigError("trainer.precision=16-mixed needs a GPU; trainer.precision=auto takes what this machine has.")
    if setting != "auto":
        return setting, "as typed"
    if on_gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return BF16, f"{torch.cuda.get_device_name()} computes in bf16"
        return FULL, f"{torch.cuda.get_device_name()} has no bf16; trainer.precision=16-mixed may be faster"
    if accelerator in ("auto", "cpu") and _cpu_has_bf16():
        return BF16, "this CPU computes in bf16"
    return FULL, "no bf16 here"


def check_compile() -> None:
    """Compile a sum of two numbers, so that a machine that cannot is told before an hour goes into reading data.

    Raises:
        ConfigError: if torch cannot compile here: no C++ compiler, no headers of Python, or a Python that is too new.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2))
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"compile=true: torch cannot compile here ({reason[:200]}); it needs a C++ compiler such as g++, and the "
            "headers of Python. compile=false does without."
        ) from error


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
