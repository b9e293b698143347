"""Share the cores and GPUs of a machine between the trials that run at a time."""

import os
import time
from pathlib import Path

from imago.resources import choose_threads, first_cpu_times

_MEASURE_S = 1.0  # the kernel counts in steps of 0.01 s


def threads_per_process(num_processes: int) -> int:
    """Return the number of CPU threads of each process: OMP_NUM_THREADS if it is set, else its share of idle cores."""
    if "OMP_NUM_THREADS" not in os.environ:
        first_cpu_times()
        time.sleep(_MEASURE_S)
    return choose_threads("auto", num_processes)


def slot_variables(slot: int, num_slots: int, num_threads: int) -> dict[str, str]:
    """Return the environment of the trial in a slot: its number of threads, and its share of the GPUs if there are."""
    variables = {"OMP_NUM_THREADS": str(num_threads)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]  # numbered from 0
    gpus = present if visible is None else [name for name in visible.split(",") if name]
    if num_slots > 1 and gpus:
        share = max(1, len(gpus) // num_slots)
        first = slot * share % len(gpus)
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + share])
    return variables
