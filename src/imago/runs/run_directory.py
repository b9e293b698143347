"""Open and close a run directory: lock, signal handlers, log file, provenance, and how the run ended."""

import json
import logging
import os
import re
import shlex
import subprocess
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from imago.errors import ConfigError, DataError, UserError
from imago.files import (
    atomic_write,
    make_writable,
    read_json,
    refuse_links,
    remove_partial_files,
    write_json,
    write_text,
)
from imago.log import log_to
from imago.paths import checkpoint_file, command, short_path
from imago.runs.failure import clear_failures, explain_exit, first_failure, write_failure, write_killed_failures
from imago.runs.provenance import collect_provenance
from imago.runs.signals import Signals, is_main_process, watch_main_process
from imago.system import IS_POSIX, try_lock

_log = logging.getLogger("imago")

# Entries of provenance.json that a resumed run must have, too, and their names in messages.
_DATA_DIGESTS = {"data": "fingerprint", "images": "contents of the images", "test": "contents of the test images"}
_IS_RUNNING = "belongs to a run that is still running; wait for it, stop it, or choose another run_name."
_SUMMARY_LOCK = threading.Lock()  # threads that watch other ranks write the summary as well


class RunDirectory:
    """The directory of one run, created by `open`, and from its first checkpoint on a link `latest` to it in `log_dir`.

    The main process writes to it; the other ranks write only their failures.
    """

    def __init__(self, path: Path, log_dir: Path) -> None:
        self.path = path
        self.log_dir = log_dir
        self.is_main_process = is_main_process()
        self.has_ended = False
        self._start_s = 0.0
        self._is_linked = False
        self._before: dict[Path, bytes] = {}  # the records of a resumed run, until it is accepted
        self.signals = Signals()

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`, which under ddp_fork another process writes."""
        return read_json(self.path / "summary.json")

    @contextmanager
    def open(
        self, settings: str, overrides: Sequence[str], seed: int, check: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Lock the directory, handle signals, log to it, and write to `summary.json` how the block ended.

        When SIGUSR1 ends the run in a SLURM job, the job is queued again.

        Args:
            settings: all settings of the run as YAML, for `config.yaml`.
            overrides: the settings as typed, which `resume=` starts from.
            seed: the setting `seed`, for `provenance.json`.
            check: called when the directory is locked and before a run writes to it; may raise to refuse the directory.

        Raises:
            ConfigError: if another process uses the directory.
            DataError: if the directory cannot be written, or contains links.
        """
        watch_main_process()
        with ExitStack() as stack:
            if self.is_main_process:
                refuse_links(self.path)
                make_writable(self.path, "paths.log_dir=DIR")
                if (self.path / "checkpoints").exists():
                    make_writable(self.path / "checkpoints", "paths.log_dir=DIR")
                stack.enter_context(lock_directory(self.path))
            if check is not None:  # in all ranks, as torchrun would wait for those that do not end
                check()
            if self.is_main_process:
                stack.enter_context(log_to(self.path / "train.log"))
            else:
                self.path.mkdir(parents=True, exist_ok=True)
                _log.setLevel(logging.ERROR)
            stack.enter_context(self._record_end())
            if self.is_main_process:
                self._write_start(settings, overrides, seed)
            yield

    @contextmanager
    def _record_end(self) -> Iterator[None]:
        self._start_s = perf_counter()
        try:
            with self.signals.handle():
                yield
                self.signals.finish()
            self.has_ended = True
            self.write_end("finished", None)
        except BaseException as error:
            self.has_ended = True
            write_killed_failures(self.path, error, self.signals.rank_processes())
            status, reason, exit_error = explain_exit(error, self.path, self.signals.received_signal)
            if status == "failed":
                _log.debug("".join(traceback.format_exception(error)))
                if not self.is_main_process:
                    self.record_failure(error)
            if not (isinstance(exit_error, UserError) and self._restore_records()):
                self.write_end(status, reason)
            if status == "stopped":  # only the main process logs
                again = f"{command('train')} resume={shlex.quote(short_path(self.path))}"
                is_saved = checkpoint_file(self.path, "last").is_file()
                advice = f"; to continue: {again}" if is_saved else " before its first checkpoint"
                _log.info("stopped by %s%s", reason, advice)
            if exit_error is error:
                raise
            raise exit_error from None

    def accept(self) -> None:
        """Keep the settings of this resume: until here, an error of the user leaves the records as they were."""
        self._before = {}

    def _restore_records(self) -> bool:
        """Write the records of a resumed run that is refused as they were; return whether there were any."""
        try:
            for file, content in self._before.items():
                with atomic_write(file, "wb") as opened:
                    opened.write(content)
        except OSError:  # such as a full disk, on which the status can still be written
            return False
        return bool(self._before)

    def update(self, **entries: Any) -> None:
        """Add entries to `summary.json`; the status of a running run becomes failed if a rank has failed."""
        with _SUMMARY_LOCK:
            summary = self.summary | entries
            failure = first_failure(self.path) if summary.get("status") == "running" else None
            if failure is not None:
                reason = f"rank {failure.rank}: {failure.text}"
                summary |= {"status": "failed", "reason": reason, "ended": _now(summary.get("started"))}
            if entries or failure:
                write_json(self.path / "summary.json", summary)

    def forget(self, names: Collection[str]) -> None:
        """Remove entries of `summary.json`."""
        with _SUMMARY_LOCK:
            summary = self.summary
            if not summary.keys().isdisjoint(names):
                kept = {name: value for name, value in summary.items() if name not in names}
                write_json(self.path / "summary.json", kept)

    def record_failure(self, error: BaseException) -> None:
        """Write the failure of this rank to a file and to the summary: the main process may be killed before it can."""
        write_failure(self.path, error)
        self.update()

    def add_provenance(self, data_fingerprint: str, **entries: Any) -> None:
        """Add entries to `provenance.json`; `ImageDataModule.fingerprint` is stored as `data`.

        `images` and `test` are digests of a sample of all images, and of the test images.

        Raises:
            DataError: if the data has changed on resume: another split could put training images into test.
        """
        if self.is_main_process:
            file = self.path / "provenance.json"
            saved, entries = read_json(file), entries | {"data": data_fingerprint}
            for name, meaning in _DATA_DIGESTS.items():
                before, now = saved.get(name), entries.get(name)
                if before and now and before != now:
                    raise DataError(
                        f"{self.path} was started on other data ({meaning} {before[:16]}, now {now[:16]}): files were "
                        "added, removed or changed. Restore them, or start a new run."
                    )
            write_json(file, saved | entries)

    def store_setting(self, key: str, value: int) -> None:
        """Store a number that the run has chosen, as if it had been typed: a resumed run keeps it."""
        if not self.is_main_process:
            return
        config, file = self.path / "config.yaml", self.path / "provenance.json"
        write_text(config, re.sub(rf"^{key}: .*$", f"{key}: {value}", config.read_text("utf-8"), flags=re.MULTILINE))
        provenance = read_json(file)
        others = [text for text in provenance["overrides"] if not text.startswith(f"{key}=")]
        write_json(file, provenance | {"overrides": [*others, f"{key}={value}"]})

    def _write_start(self, settings: str, overrides: Sequence[str], seed: int) -> None:
        """Write the status running, config and provenance."""
        if has_never_saved(self.path):  # start again
            for name in ("provenance.json", "summary.json", "metrics.csv"):
                (self.path / name).unlink(missing_ok=True)
        else:
            records = [self.path / name for name in ("summary.json", "config.yaml", "provenance.json")]
            self._before = {file: file.read_bytes() for file in records if file.is_file()}
        clear_failures(self.path)
        remove_partial_files(self.path)
        # First, as it can be overwritten on a full disk, too. A resumed run keeps its results.
        self.update(status="running", reason=None, started=_now(), pid=os.getpid())
        write_text(self.path / "config.yaml", settings)
        provenance, file = collect_provenance(overrides, seed), self.path / "provenance.json"
        if first := read_json(file):  # a resumed run keeps the provenance of its start
            resumes = [*first.get("resumes", []), provenance]
            provenance = first | {"overrides": provenance["overrides"], "resumes": resumes}
        write_json(file, provenance)
        if any(self.path.glob("checkpoints/*.ckpt")):
            self.link_latest()

    def link_latest(self) -> None:
        """Let the link `latest` point to this run, once: when it has a checkpoint."""
        if self._is_linked:
            return
        self._is_linked = True
        latest, new_link = self.log_dir / "latest", self.log_dir / f"latest.{os.getpid()}.part"
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self.path, self.log_dir) if IS_POSIX else self.path.absolute()  # other drives
            new_link.symlink_to(target, target_is_directory=True)
            if not IS_POSIX and latest.is_symlink():  # Windows does not replace it
                latest.unlink()
            new_link.replace(latest)
        except OSError as error:  # such as a directory of that name; Windows allows links in its developer mode only
            run = shlex.quote(short_path(self.path))
            _log.warning("%s does not point to this run: %s; type run=%s", short_path(latest), error.strerror, run)
            new_link.unlink(missing_ok=True)

    def write_end(self, status: str, reason: str | None) -> None:
        """Write to the summary how the run ended, also on a full disk; after SIGUSR1 queue its SLURM job again."""
        if not self.is_main_process:
            return
        end: dict[str, Any] = {"status": status, "reason": reason, "ended": _now(self.summary.get("started"))}
        end["seconds"] = round(perf_counter() - self._start_s, 1)
        try:
            self.update(**end)
        except OSError:  # on a full disk, overwrite the old summary in place
            text = json.dumps(self.summary | end, indent=2) + "\n"
            with suppress(OSError), (self.path / "summary.json").open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()
        if reason == "SIGUSR1":
            requeue_slurm_job()


def has_never_saved(directory: Path) -> bool:
    """Return whether a run was interrupted or failed before it saved anything, so that its directory may be used again.

    The caller holds the lock of the directory, so that the run is not running.
    """
    status = read_json(directory / "summary.json").get("status")
    return status in ("running", "failed", "stopped") and not any(directory.glob("checkpoints/*.ckpt"))


@contextmanager
def lock_directory(directory: Path, problem: str = _IS_RUNNING) -> Iterator[None]:
    """Lock an existing directory; the system releases the lock when the process ends, however it ends.

    It is a POSIX lock: forked processes do not inherit it, and it works between machines if their file system supports
    locks. If not, nothing is checked.

    Raises:
        ConfigError: if another process holds the lock, with `problem`.
    """
    with (directory / ".lock").open("ab") as file:
        is_free = True
        with suppress(OSError):  # a file system without locks
            is_free = try_lock(file, is_inherited=False)
        if not is_free:
            raise ConfigError(f"{directory} {problem}")
        yield


def requeue_slurm_job() -> None:
    """Queue this SLURM job, or this task of a job array, again; outside SLURM do nothing."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    job_id = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:  # at most 60 of the 90 s between SIGUSR1 and the time limit in docs/cluster.sbatch
        subprocess.run(["scontrol", "requeue", job_id], capture_output=True, encoding="utf-8", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        failure = getattr(error, "stderr", None) or error
        _log.warning("job %s is not queued again: scontrol failed: %s", job_id, str(failure).strip())


def _now(earliest: str | None = None) -> str:
    """Return the time, or `earliest` if the clock was set back since then."""
    return max(datetime.now(UTC).isoformat(timespec="seconds"), earliest or "")
