"""Open and close a run directory: lock, signal handlers, log file, provenance, and how the run ended."""

import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from imago.errors import DataError
from imago.files import make_writable, read_json, remove_partial_files, write_json, write_text
from imago.runs.failure import clear_failures, exit_status, first_failure, write_failure, write_killed_ranks
from imago.runs.lock import lock_directory
from imago.runs.provenance import collect
from imago.runs.signals import Signals, is_main_process, watch_main_process

_log = logging.getLogger("imago")

_HANDLER = "run directory"  # name of our handlers: a notebook or a test may have others
_LOGGERS = ("imago", "lightning.pytorch", "py.warnings")
_SUMMARY_LOCK = threading.RLock()  # the threads that watch the other ranks write the summary, too


class RunDirectory:
    """The directory of one run. The main process writes to it; the other ranks write only their failures.

    Args:
        path: the directory; created by `open`.
        log_dir: where the link `latest` is created.
    """

    def __init__(self, path: Path, log_dir: Path) -> None:
        self.path = path
        self.log_dir = log_dir
        self.is_main_process = is_main_process()
        self.signals = Signals()
        self.summary: dict[str, Any] = {}

    @contextmanager
    def open(
        self, settings: str, overrides: Sequence[str], seed: int, check: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Lock the directory, handle signals, log to it, and write to `summary.json` how the block ended.

        When SIGUSR1 ends the run in a SLURM job, the job is queued again.

        Args:
            settings: all settings of the run as YAML, for `config.yaml`.
            overrides: the settings as typed, which `resume=` starts from.
            seed: of the run.
            check: called when the directory is locked and before anything is written to it; it raises to refuse it.

        Raises:
            ConfigError: if another process uses the directory.
            DataError: if the directory cannot be written.
        """
        watch_main_process()
        with ExitStack() as stack:
            if self.is_main_process:
                make_writable(self.path, "paths.log_dir=DIR")
                if (self.path / "checkpoints").exists():
                    make_writable(self.path / "checkpoints", "paths.log_dir=DIR")
                stack.enter_context(lock_directory(self.path))
                if check is not None:
                    check()
                self._open_log()
                stack.callback(_close_log)
                self._write_start(settings, overrides, seed)
            else:
                self.path.mkdir(parents=True, exist_ok=True)
                _log.setLevel(logging.ERROR)
            stack.enter_context(self._record_end())
            yield

    @contextmanager
    def _record_end(self) -> Iterator[None]:
        start_s = perf_counter()
        try:
            with self.signals.handle():
                yield
            self._write_end("finished", None, start_s)
        except BaseException as error:
            write_killed_ranks(self.path, error, self.signals.rank_processes())
            end = exit_status(error, self.path, self.signals.received)
            if end.status == "failed":
                _log.debug("".join(traceback.format_exception(error)))
                if not self.is_main_process:
                    self.record_failure(error)
            self._write_end(end.status, end.reason, start_s)
            if end.reason == "SIGUSR1" and self.is_main_process:
                requeue_slurm_job()
            if end.error is error:
                raise
            raise end.error from None

    def update(self, **entries: Any) -> None:
        """Add entries to `summary.json`; set the status to failed if a rank has failed."""
        self.summary |= entries
        if self.is_main_process:
            with _SUMMARY_LOCK:
                write_json(self.path / "summary.json", self.summary | self._rank_failure(self.summary))

    def record_failure(self, error: BaseException) -> None:
        """Write the failure of this rank to a file and to the summary: the main process may be killed before it can."""
        write_failure(self.path, error)
        self.mark_failed()

    def mark_failed(self) -> None:
        """Write to the summary of a running run why a rank failed."""
        with _SUMMARY_LOCK:
            summary = read_json(self.path / "summary.json")
            if entries := self._rank_failure(summary):
                write_json(self.path / "summary.json", summary | entries)

    def _rank_failure(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        failure = first_failure(self.path) if summary.get("status") == "running" else None
        if failure is None:
            return {}
        return {"status": "failed", "reason": f"rank {failure.rank}: {failure.text}", "ended": _now()}

    def reload(self) -> None:
        """Read the summary again after a forked rank has written to it."""
        self.summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))

    def add_provenance(self, data: str, **entries: Any) -> None:
        """Add entries to `provenance.json`.

        Args:
            data: fingerprint of the data.
            entries: anything else.

        Raises:
            DataError: if a resumed run finds other data: another split could train on images it is tested with.
        """
        if self.is_main_process:
            file = self.path / "provenance.json"
            saved = json.loads(file.read_text(encoding="utf-8"))
            if saved.get("data", data) != data:
                raise DataError(
                    f"{self.path} was started on other data (fingerprint {saved['data']}, now {data}): files were "
                    "added, removed or changed. Restore them, or start a new run."
                )
            write_json(file, saved | entries | {"data": data})

    def _write_start(self, settings: str, overrides: Sequence[str], seed: int) -> None:
        clear_failures(self.path)
        remove_partial_files(self.path)
        write_text(self.path / "config.yaml", settings)
        provenance, file = collect(overrides, seed), self.path / "provenance.json"
        if file.exists():  # a resumed run keeps the provenance of its start
            first = json.loads(file.read_text(encoding="utf-8"))
            resumes = [*first.get("resumes", []), provenance]
            provenance = first | {"overrides": provenance["overrides"], "resumes": resumes}
        write_json(file, provenance)
        self.summary = dict(read_json(self.path / "summary.json"))  # a resumed run keeps its results
        self.update(status="running", reason=None, started=_now(), pid=os.getpid())
        link = self.log_dir / "latest"
        part = link.with_name(f"latest.{os.getpid()}.part")
        part.symlink_to(os.path.relpath(self.path, self.log_dir))
        part.replace(link)

    def _write_end(self, status: str, reason: str | None, start_s: float) -> None:
        seconds = round(perf_counter() - start_s, 1)
        try:
            self.update(status=status, reason=reason, ended=_now(), seconds=seconds)
        except OSError:  # on a full disk, overwrite the old summary in place
            with suppress(OSError), (self.path / "summary.json").open("r+", encoding="utf-8") as file:
                file.write(json.dumps(self.summary, indent=2) + "\n")
                file.truncate()

    def _open_log(self) -> None:
        """Log our messages to the screen, and those of Lightning and all warnings to train.log, too."""
        screen = logging.StreamHandler(sys.stdout)
        screen.setLevel(logging.INFO)
        file = _LogFile(self.path / "train.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.captureWarnings(True)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.DEBUG if name == "imago" else logging.INFO)
            logger.propagate = False
            for handler in (screen, file) if name == "imago" else (file,):
                handler.set_name(_HANDLER)
                logger.addHandler(handler)


def _close_log() -> None:
    """Remove the handlers: the next trial of a sweep logs to another directory."""
    logging.captureWarnings(False)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if handler.get_name() == _HANDLER]:
            logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()


class _LogFile(logging.FileHandler):
    """A log file that drops lines when the disk is full: the error is reported once, at the end."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def requeue_slurm_job() -> None:
    """Queue this SLURM job, or this task of a job array, again; outside SLURM do nothing."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        failure = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure is not None:
        _log.warning("job %s is not queued again: scontrol failed: %s", job, failure)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
