"""Checkpoint files survive kill -9 during a save, a full disk, a limit on file sizes and a read-only directory."""

import ctypes
import json
import logging
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from imago.errors import DataError, DivergedError, StorageError
from imago.runs.checkpoint import AtomicCheckpointIO, check_free_space, read_checkpoint
from imago.runs.run_directory import RunDirectory

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # of unshare(2)


def in_a_fork(work: Callable[[], object]) -> int:
    """Start `work` in a forked process, which has already imported torch."""
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)  # the threads of the parent are not here
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    return pid


def checkpoint(epoch: int, num_floats: int = 200_000) -> dict:
    """Return tensors of many sizes that all hold the number of the epoch."""
    sizes = [num_floats, num_floats // 7, 1000, 1]
    return {"state_dict": {str(size): torch.full((size,), float(epoch)) for size in sizes}, "epoch": epoch}


def epoch_of(path: Path) -> int:
    """Read a checkpoint back; all of it must be of one epoch."""
    saved = read_checkpoint(path)
    assert {float(value) for tensor in saved["state_dict"].values() for value in tensor.unique()} == {saved["epoch"]}
    return saved["epoch"]


def save_without_end(folder: Path) -> None:
    for epoch in range(1, 100_000):
        for name in ("best", "last"):
            AtomicCheckpointIO().save_checkpoint(checkpoint(epoch), folder / f"{name}.ckpt")


def survived_kills(folder: Path, num_kills: int) -> int:
    """Kill a process that saves all the time, at random moments; count how often all files loaded after it."""
    draw = random.Random(0)
    for name in ("best", "last"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(0), folder / f"{name}.ckpt")
    survived = num_broken_saves = 0
    for _ in range(num_kills):
        old = (folder / "last.ckpt").stat().st_ino
        pid = in_a_fork(lambda: save_without_end(folder))
        while (folder / "last.ckpt").stat().st_ino == old:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.001, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        num_broken_saves += bool(list(folder.glob("*.part")))
        best, last = epoch_of(folder / "best.ckpt"), epoch_of(folder / "last.ckpt")
        survived += best - last in (0, 1)
        save = AtomicCheckpointIO().save_checkpoint
        save(checkpoint(0), folder / "best.ckpt"), save(checkpoint(0), folder / "last.ckpt")
        assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert num_broken_saves > num_kills / 10, "too few of the kills came in the middle of a save to say anything"
    return survived


@pytest.fixture(params=["TMPDIR in memory", "TMPDIR on the disk"])
def temporary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the directory where other programs write first."""
    directory = "/dev/shm" if "memory" in request.param else str(tmp_path)
    monkeypatch.setenv("TMPDIR", directory)
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.slow
def test_both_files_load_after_each_of_ten_kills(tmp_path: Path):
    assert survived_kills(tmp_path, 10) == 10


@pytest.mark.soak
def test_both_files_load_after_each_of_a_hundred_kills(tmp_path: Path, temporary: None, record_property):
    record_property("rule", "hundreds of kills -9 in a save that both files survive, TMPDIR in memory and on the disk")
    (tmp_path / "run").mkdir()
    survived = survived_kills(tmp_path / "run", 100)
    record_property("kills survived", survived)
    assert survived == 100


def test_a_save_does_not_use_the_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    assert epoch_of(tmp_path / "last.ckpt") == 1


def save_too_much(folder: Path) -> None:
    """Save a file that fits and one that does not; the second raises and the first is kept."""
    save = AtomicCheckpointIO().save_checkpoint
    save(checkpoint(1, num_floats=10_000), folder / "last.ckpt")
    with pytest.raises(StorageError, match=r"last\.ckpt cannot be written .* bytes are free there"):
        save(checkpoint(2, num_floats=500_000), folder / "last.ckpt")
    assert epoch_of(folder / "last.ckpt") == 1
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path: Path):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        save_too_much(tmp_path)

    assert os.waitpid(in_a_fork(work), 0)[1] == 0


def mount_in_a_fork(kind: list[str], folder: Path, work: Callable[[], None]) -> int:
    """Mount something on `folder` that only the fork sees; 77 where the system does not let us."""

    def mounted() -> None:
        flags = _NEW_MOUNTS if os.geteuid() == 0 else _NEW_MOUNTS | _NEW_USER
        if ctypes.CDLL(None).unshare(flags) or subprocess.run(["mount", *kind, str(folder)]).returncode:
            os._exit(77)
        work()

    code = os.waitstatus_to_exitcode(os.waitpid(in_a_fork(mounted), 0)[1])
    if code == 77:
        pytest.skip("no right to mount")
    return code


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    assert mount_in_a_fork(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], tmp_path, lambda: save_too_much(tmp_path)) == 0


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(b"0" * 100)


def run_until_the_disk_is_full(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "train" / "run", tmp_path)
    refused = pytest.raises(StorageError, match=r"cannot be written .No space left on device.; free some space")
    with refused, folder.open("seed: 0\n", [], 0):
        fill(folder.log_dir / "junk")
        logging.getLogger("imago").debug("x" * 10_000)
        (folder.path / "metrics.csv").write_text("step\n" * 1000)
    saved = json.loads((folder.path / "summary.json").read_text())
    assert saved["status"] == "failed"
    assert "No space left on device" in saved["reason"]
    assert not list(folder.path.glob("*.part"))


def test_the_summary_of_a_run_names_the_full_disk(tmp_path: Path):
    kind = ["-t", "tmpfs", "-o", "size=200k", "tmpfs"]
    assert mount_in_a_fork(kind, tmp_path, lambda: run_until_the_disk_is_full(tmp_path)) == 0


def start_on_a_full_disk(tmp_path: Path, limit: str) -> None:
    folder = RunDirectory(tmp_path / "train" / "run", tmp_path)
    with suppress(OSError), folder.open("seed: 0\n" * 1000, [], 0):
        pass
    summary = folder.path / "summary.json"
    status = json.loads(summary.read_text() or "{}").get("status") if summary.exists() else None
    assert status in ("failed", None), limit  # never running
    assert not list(folder.path.glob("*.part"))


@pytest.mark.parametrize("limit", ["size=4k", "size=8k", "size=12k", *(f"nr_inodes={n}" for n in (5, 6, 7))])
def test_a_disk_that_is_almost_full_at_the_start_leaves_no_run_that_seems_to_run(tmp_path: Path, limit: str):
    kind = ["-t", "tmpfs", "-o", limit, "tmpfs"]
    assert mount_in_a_fork(kind, tmp_path, lambda: start_on_a_full_disk(tmp_path, limit)) == 0


def test_a_read_only_directory_is_refused_before_anything_is_built(tmp_path: Path):
    def work() -> None:
        refused = pytest.raises(DataError, match="run cannot be written: Read-only file system; choose .*log_dir=DIR")
        with refused, RunDirectory(tmp_path / "run", tmp_path).open("seed: 0\n", [], 0):
            pass

    assert mount_in_a_fork(["-t", "tmpfs", "-o", "ro", "tmpfs"], tmp_path, work) == 0


def test_a_disk_without_space_for_three_checkpoints_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    net = torch.nn.Linear(999, 1000)  # a million weights, and two moments each: 12 MB
    monkeypatch.setattr("imago.runs.checkpoint.free_disk_bytes", lambda folder: 36_000_000)
    check_free_space(tmp_path, net)
    monkeypatch.setattr("imago.runs.checkpoint.free_disk_bytes", lambda folder: 35_999_999)
    with pytest.raises(
        StorageError, match="35,999,999 bytes free, and three checkpoints of this network take 36,000,000"
    ):
        check_free_space(tmp_path, net)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["state_dict", "optimizer_states", "current_model_state"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, part: str, value: float):
    save = AtomicCheckpointIO().save_checkpoint
    save(checkpoint(1), tmp_path / "last.ckpt")
    broken = {"moments": torch.tensor([1.0, value])}
    state = checkpoint(2) | {part: [{"state": {0: broken}}] if part == "optimizer_states" else broken}
    with pytest.raises(DivergedError, match="no longer finite"):
        save(state, tmp_path / "last.ckpt")
    assert epoch_of(tmp_path / "last.ckpt") == 1
    callbacks = {"callbacks": {"best": {"kth_value": torch.tensor(float("-inf"))}}}  # no score yet
    save(checkpoint(3) | callbacks, tmp_path / "last.ckpt")
