"""CPU cores, memory and disk within container limits, read from simulated files of the kernel."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from imago import resources
from imago.resources import (
    CpuTimes,
    available_cores,
    available_memory_bytes,
    choose_threads,
    free_disk_bytes,
    idle_cores,
    num_interrupts,
    peak_memory_bytes,
)

GIB = 2**30


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files as the kernel would show them; the machine has 8 cores and 16 GiB free."""
    monkeypatch.setattr(resources, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(files: dict[str, str]) -> None:
        defaults = {"proc/meminfo": f"MemTotal: 33554432 kB\nMemAvailable: {16 * 2**20} kB\nBuffers: 1 kB\n"}
        for name, text in (defaults | files).items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return lambda files=None: write(files or {})


def test_without_limits_the_resources_are_those_of_the_machine(kernel):
    kernel()
    assert available_cores() == 8
    assert available_memory_bytes() == 16 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 2),  # rounded up: one core would leave half a core idle
        ("50000 100000", 1),
        ("1600000 100000", 8),  # more than there are cores
        ("100000 50000", 2),
    ],
)
def test_a_cpu_quota_counts_in_cgroup_v2(kernel, quota: str, cores: int):
    kernel({"proc/self/cgroup": "0::/job", "groups/job/cpu.max": quota})
    assert available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3), ("10000", 1)])
def test_a_cpu_quota_counts_in_cgroup_v1(kernel, quota: str, cores: int):
    group = "groups/cpu,cpuacct/job"
    limits = {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "100000"}
    kernel({"proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n0::/", **limits})
    assert available_cores() == cores


def test_the_limit_of_an_outer_group_counts_too(kernel):
    limits = {"groups/user/job/cpu.max": "max 100000", "groups/user/cpu.max": "300000 100000"}
    kernel({"proc/self/cgroup": "0::/user/job", **limits})
    assert available_cores() == 3


def test_inside_a_container_the_limit_is_at_the_root_of_the_mount(kernel):
    kernel(
        {
            "proc/self/cgroup": "4:cpu:/docker/0a1b\n3:memory:/docker/0a1b",
            "groups/cpu/cpu.cfs_quota_us": "200000",
            "groups/cpu/cpu.cfs_period_us": "100000",
            "groups/memory/memory.limit_in_bytes": str(3 * GIB),
            "groups/memory/memory.usage_in_bytes": str(1 * GIB),
        }
    )
    assert available_cores() == 2
    assert available_memory_bytes() == 2 * GIB


def test_cpu_affinity_counts(kernel, monkeypatch: pytest.MonkeyPatch):
    kernel()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert available_cores() == 2


@pytest.mark.parametrize(
    ("group", "directory", "limit", "used", "inactive"),
    [
        ("0::/job", "groups/job", "memory.max", "memory.current", "inactive_file"),
        (
            *("3:memory:/job", "groups/memory/job"),
            *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_memory_is_the_limit_of_the_group_minus_its_usage(kernel, group, directory, limit, used, inactive):
    kernel({"proc/self/cgroup": group, f"{directory}/{limit}": str(8 * GIB), f"{directory}/{used}": str(6 * GIB)})
    assert available_memory_bytes() == 2 * GIB
    # A file that was read once fills the group's memory but can go at any time.
    kernel({"proc/self/cgroup": group, f"{directory}/memory.stat": f"anon 5\n{inactive} {3 * GIB}\nslab 7"})
    assert available_memory_bytes() == 5 * GIB


@pytest.mark.parametrize(("limit", "left_bytes"), [("max", 16 * GIB), ("1000", 0)])
def test_the_memory_left_is_that_of_the_machine_without_a_limit_and_never_negative(kernel, limit: str, left_bytes: int):
    kernel({"proc/self/cgroup": "0::/job", "groups/job/memory.max": limit, "groups/job/memory.current": "2000"})
    assert available_memory_bytes() == left_bytes


@pytest.mark.parametrize(
    ("idle_s", "own_s", "cores"),
    [
        (14.0, 2.0, 8),  # nothing else runs: this process itself used one core
        (6.0, 2.0, 4),
        (12.9, 2.0, 7),  # 7.45
        (0.0, 0.4, 1),  # every core is busy: 0.2 is rounded up to 1
        (99.0, 2.0, 8),  # no more than there are
    ],
)
def test_idle_cores_are_those_that_other_processes_leave(
    kernel, monkeypatch: pytest.MonkeyPatch, idle_s: float, own_s: float, cores: int
):
    kernel()
    times = iter([CpuTimes(100.0, 50.0, 1.0), CpuTimes(102.0, 50.0 + idle_s, 1.0 + own_s)])
    monkeypatch.setattr(resources, "first_cpu_times", lambda: next(times))
    monkeypatch.setattr(resources, "_cpu_times", lambda: next(times))
    assert idle_cores() == cores


@pytest.mark.parametrize(
    ("typed", "variable", "num_processes", "num_workers", "threads"),
    [
        ("auto", None, 1, 0, 4),
        ("auto", None, 2, 1, 1),
        ("auto", " 2 ,1", 1, 0, 2),
        ("auto", "\u00b2", 1, 0, 4),
        ("auto", None, 8, 0, 1),
        ("auto", "2,1", 2, 0, 2),  # of nested parallel regions
        ("auto", "", 1, 0, 4),
        ("auto", "0", 1, 0, 4),  # no number that torch would take
        (3, "2", 2, 1, 3),
    ],
)
def test_threads_are_those_typed_or_of_the_variable_or_a_share_of_the_idle_cores(
    *,
    monkeypatch: pytest.MonkeyPatch,
    typed: int | str,
    variable: str | None,
    num_processes: int,
    num_workers: int,
    threads: int,
):
    monkeypatch.setattr(resources, "idle_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert choose_threads(typed, num_processes, num_workers) == threads


@pytest.mark.slow
def test_busy_processes_are_not_counted_as_idle():
    """One process keeps one core busy; the others may be busy too."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    code = "import time; from imago import resources as r; r.first_cpu_times(); time.sleep(1); print(r.idle_cores())"
    try:
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    finally:
        busy.kill()
        busy.wait()
    assert 1 <= int(printed) <= max(1, available_cores() - 1)


def test_this_machine_has_cores_and_memory():
    assert available_cores() >= 1
    assert available_memory_bytes() > 2**20


def test_free_disk_space_of_a_missing_folder_is_that_of_its_nearest_parent(tmp_path: Path):
    assert free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(free_disk_bytes(tmp_path), rel=0.01)
    assert free_disk_bytes(tmp_path) > 0


def test_the_peak_memory_is_at_least_what_the_process_uses_now_and_grows_with_it():
    before = peak_memory_bytes()
    assert before >= 0.9 * psutil.Process().memory_info().rss
    block = bytearray(b"1") * (64 * 2**20)
    assert peak_memory_bytes() >= psutil.Process().memory_info().rss * 0.9 >= len(block)


def test_without_files_of_the_kernel_the_peak_is_that_of_getrusage_or_of_windows(kernel, monkeypatch):
    usage = SimpleNamespace(ru_maxrss=5000)
    monkeypatch.setattr(resources.resource, "getrusage", lambda who: usage)
    peaks = []
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        peaks.append(peak_memory_bytes())
    assert peaks == [5000 * 1024, 5000]  # kB, and bytes on macOS: getrusage(2) of each
    monkeypatch.setattr(resources, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: SimpleNamespace(peak_wset=7000))
    assert peak_memory_bytes() == 7000
    assert num_interrupts() == 0


def test_interrupts_are_those_that_psutil_counts():
    """psutil counts those of the first thread, `num_interrupts` those of all threads."""
    assert num_interrupts() >= psutil.Process().num_ctx_switches().involuntary
    assert num_interrupts() > 0 or os.cpu_count() > 1


def test_without_a_report_of_the_kernel_the_free_memory_is_that_of_psutil(kernel, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * GIB))
    assert available_memory_bytes() == 3 * GIB
