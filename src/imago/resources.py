"""What this process may take of the machine: cores, memory and disk, within the limits that a container sets.

Linux tells the limits of a group of processes in files: https://docs.kernel.org/admin-guide/cgroup-v2.html, and
cgroup-v1/ for the older layout.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Count the cores that this process may use: those it may run on, or its share of CPU time, rounded up, if less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_shares())]))


def available_memory_bytes() -> int:
    """Give the memory that can still be taken: what is free or can be freed, or what the group has left, if less."""
    return max(0, min([_free_bytes(), *_group_memory_left()]))


def free_disk_bytes(folder: Path) -> int:
    """Give the free space of the disk where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _cpu_shares() -> Iterator[float]:
    """Give the limits on CPU time, in cores."""
    for folder in _group_folders(""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota) / int(period)
    for folder in _group_folders("cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # -1 is no limit
            yield int(quota) / int(period)


def _group_memory_left() -> Iterator[int]:
    """Give limit minus use, in bytes; files that the kernel only keeps for a second reading count as free."""
    for folder in _group_folders(""):
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            yield int(limit) - int(used) + _statistic(folder, "inactive_file")
    for folder in _group_folders("memory"):
        limit, used = _read(folder / "memory.limit_in_bytes"), _read(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            yield int(limit) - int(used) + _statistic(folder, "total_inactive_file")


def _group_folders(controller: str) -> Iterator[Path]:
    """Give the folders of this process's group and of those it is part of; "" is the newer layout, cgroup v2."""
    for line in _read(_PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mount = _GROUPS / controllers
        # Within a container the mount may show the group itself as the root, under the path it has outside.
        yield from (mount / parent.relative_to("/") for parent in (Path(path), *Path(path).parents))


def _free_bytes() -> int:
    for line in _read(_PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # where the system does not tell what is free


def _statistic(folder: Path, name: str) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        if line.split()[0] == name:
            return int(line.split()[1])
    return 0


def _read(file: Path) -> str:
    """Give the text of a file of the kernel; "" if this system has no such file."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
