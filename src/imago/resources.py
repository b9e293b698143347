"""Report the CPU cores, memory and disk space available to this process, within the limits of its container.

Linux reports the limits of control groups in files: https://docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/
for the older layout.
"""

import functools
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return the number of CPU cores this process may use; a smaller quota of CPU time counts, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_quotas())]))


class CpuTimes(NamedTuple):
    """Times in seconds: the clock, the sum over the usable cores in which they were idle, and this process's own."""

    clock_s: float
    idle_s: float
    own_s: float


@functools.cache
def first_cpu_times() -> CpuTimes:
    """Return the times at the first call in this process, from which `idle_cores` measures."""
    return _cpu_times()


def idle_cores() -> int:
    """Return the number of cores, at least 1, that other processes have left idle since `first_cpu_times`, rounded."""
    before, now = first_cpu_times(), _cpu_times()
    free_s = now.idle_s - before.idle_s + now.own_s - before.own_s
    free = round(free_s / max(now.clock_s - before.clock_s, 0.01))  # the kernel counts in steps of 0.01 s
    return max(1, min(available_cores(), free))


def is_thread_setting(threads: object) -> bool:
    """Return whether a value of the setting `threads` is auto, or a number of 1 or more that torch can take."""
    is_number = isinstance(threads, int) and not isinstance(threads, bool)
    return threads == "auto" or (is_number and 1 <= threads < 2**15)  # type: ignore[operator]


def choose_threads(threads: int | str, num_processes: int = 1, num_workers: int = 0) -> int:
    """Return the number of CPU threads of each process: `threads`, or for auto its share of the idle cores.

    A core is left to each of its loader workers. The variable OMP_NUM_THREADS takes the place of auto; of several
    numbers, for nested levels, it is the first.
    """
    if isinstance(threads, int):
        return threads
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else max(1, idle_cores() // num_processes - num_workers)


def _cpu_times() -> CpuTimes:
    cores = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    idle_s = sum(core.idle + getattr(core, "iowait", 0.0) for number, core in enumerate(cores) if number in usable)
    return CpuTimes(time.monotonic(), idle_s, time.process_time())


def available_memory_bytes() -> int:
    """Return the memory that can still be allocated: free or reclaimable, or what a control group has left, if less."""
    free_bytes = _read_number(_PROC / "meminfo", "MemAvailable:") * 1024 or psutil.virtual_memory().available
    return max(0, min([free_bytes, *_cgroup_memory_left()]))


def peak_memory_bytes() -> int:
    """Return the peak memory of this process; on Linux `getrusage` would include the process that started it."""
    if peak_kb := _read_number(_PROC / "self/status", "VmHWM:"):
        return peak_kb * 1024
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def num_interrupts() -> int:
    """Return how often the kernel has interrupted this process so far; Windows does not count it: 0."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def free_disk_bytes(directory: Path) -> int:
    """Return the free space of the disk of a directory, which need not exist yet."""
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _cpu_quotas() -> Iterator[float]:
    """Yield the quotas of CPU time, in cores; without a limit the kernel reports "max" or -1."""
    quotas = [_read_text(group / "cpu.max").split() for group in _cgroups("")]
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    quotas += [[_read_text(group / name) for name in names] for group in _cgroups("cpu")]
    yield from (int(quota[0]) / int(quota[1]) for quota in quotas if quota and quota[0].isdigit())


def _cgroup_memory_left() -> Iterator[int]:
    """Yield limit minus usage, in bytes; cached files count as free, because the kernel can drop them."""
    layouts = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, usage_name, cached_name in layouts:
        for group in _cgroups(controller):
            limit, usage = _read_text(group / limit_name), _read_text(group / usage_name)
            if limit.isdigit() and usage.isdigit():
                yield int(limit) - int(usage) + _read_number(group / "memory.stat", cached_name)


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's control group and its parents; "" means the newer layout, cgroup v2."""
    for line in _read_text(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            # Inside a container the mount may show the group itself as the root, although `path` is the path outside.
            yield from (
                _CGROUPS / controllers / parent.relative_to("/") for parent in (Path(path), *Path(path).parents)
            )


def _read_number(file: Path, name: str) -> int:
    """Return the number after `name` in a file of names and numbers; 0 if there is none."""
    for line in _read_text(file).splitlines():
        if line.split()[0] == name:
            return int(line.split()[1])
    return 0


def _read_text(file: Path) -> str:
    """Return the text of a file of the kernel; "" if this system has no such file."""
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""
