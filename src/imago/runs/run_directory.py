"""The run directory: settings, provenance, log and a summary that tells the truth about how the run ended."""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError, DataError
from imago.files import read_json, remove_partial_files, write_json, write_text
from imago.runs import provenance
from imago.runs.failure import clear_failures, first_failure, record_lost_ranks, write_failure
from imago.runs.rank import is_main_process
from imago.runs.signals import Signals
from imago.runs.status import exit_status

_HANDLER = "run directory"  # marks our handlers: a notebook or a test may have others
_LOGGERS = ("imago", "lightning.pytorch", "py.warnings")
_WRITING = threading.RLock()  # the summary is written by the thread that watches the other ranks, too


class _LogFile(logging.FileHandler):
    """A log that goes without the lines that a full disk has no room for: what to do is said once, at the end."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RunDirectory:
    """One run's folder on the main process; the other ranks write nothing.

    Args:
        path: the folder; made if it is not there.
        log_dir: where the link `latest` goes.
    """

    def __init__(self, path: Path, log_dir: Path) -> None:
        self.path = path
        self.log_dir = log_dir
        self.is_main_process = is_main_process()
        self.signals = Signals()
        self.summary: dict[str, Any] = {}

    @contextmanager
    def recording(self, cfg: DictConfig, overrides: list[str]) -> Iterator[None]:
        """Write what is known at the start, then how it ended: running, finished, failed or stopped."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.open_log()
        if self.is_main_process:
            self._write_start(cfg, overrides)
        start = perf_counter()
        try:
            with self.signals.caught():
                yield
            self._end("finished", None, start)
        except BaseException as error:
            record_lost_ranks(self.path, error, self.signals.started_ranks())
            ending = exit_status(error, self.path, self.signals.received)
            if ending.status == "failed":
                logging.getLogger("imago").debug("".join(traceback.format_exception(error)))
                if not self.is_main_process:
                    self.record_failure(error)
            self._end(ending.status, ending.reason, start)
            if ending.error is error:
                raise
            raise ending.error from None
        finally:
            self.close_log()

    def update(self, **facts: Any) -> None:
        """Add facts to `summary.json`; a run of which a rank has failed no longer says that it is running."""
        self.summary |= facts
        if self.is_main_process:
            with _WRITING:
                write_json(self.path / "summary.json", self.summary | self._failed_meanwhile(self.summary))

    def record_failure(self, error: BaseException) -> None:
        """Leave this rank's failure for the others, and in the summary: the main process may be killed by then."""
        write_failure(self.path, error)
        self.mark_failed()

    def mark_failed(self) -> None:
        """Say in the summary why a rank failed, if the main process has not come to say more."""
        with _WRITING:
            told = read_json(self.path / "summary.json")
            if facts := self._failed_meanwhile(told):
                write_json(self.path / "summary.json", told | facts)

    def _failed_meanwhile(self, told: Mapping[str, Any]) -> dict[str, Any]:
        failure = first_failure(self.path) if told.get("status") == "running" else None
        if failure is None:
            return {}
        return {"status": "failed", "reason": f"rank {failure.rank}: {failure.text}", "ended": _now()}

    def reload(self) -> None:
        """Read the summary back, where another process has written to it."""
        self.summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))

    def provenance_facts(self, data: str, **facts: Any) -> None:
        """Add what is known only later to `provenance.json`.

        Raises:
            DataError: if a resumed run finds other data: another split could train on images it is tested with.
        """
        if self.is_main_process:
            file = self.path / "provenance.json"
            known = json.loads(file.read_text(encoding="utf-8"))
            if known.get("data", data) != data:
                raise DataError(
                    f"{self.path} was started on other data (fingerprint {known['data']}, now {data}): files "
                    "were added, removed or changed. Bring them back, or start a new run."
                )
            write_json(file, known | facts | {"data": data})

    def _write_start(self, cfg: DictConfig, overrides: list[str]) -> None:
        clear_failures(self.path)
        remove_partial_files(self.path)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        self._write_provenance(provenance.collect(overrides, cfg.seed))
        self.summary = dict(read_json(self.path / "summary.json"))  # a resumed run keeps what it knew
        self.update(status="running", reason=None, started=_now(), pid=os.getpid())
        _point(self.log_dir / "latest", self.path)

    def _write_provenance(self, now: dict[str, Any]) -> None:
        """Keep where a resumed run came from at first, and add where it goes on."""
        file = self.path / "provenance.json"
        if file.exists():
            first = json.loads(file.read_text(encoding="utf-8"))
            now = first | {"overrides": now["overrides"], "resumes": [*first.get("resumes", []), now]}
        write_json(file, now)

    def _end(self, status: str, reason: str | None, start: float) -> None:
        seconds = round(perf_counter() - start, 1)
        try:
            self.update(status=status, reason=reason, ended=_now(), seconds=seconds)
        except OSError:  # a full disk has the room of the older summary still
            _write_over(self.path / "summary.json", self.summary)

    def open_log(self) -> None:
        """Send our log to the screen, and everything (Lightning's and warnings too) to train.log."""
        if not self.is_main_process:
            logging.getLogger("imago").setLevel(logging.ERROR)
            return
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

    def log_is_open(self) -> bool:
        """Tell whether this process has the handlers already."""
        return any(handler.get_name() == _HANDLER for handler in logging.getLogger("imago").handlers)

    def close_log(self) -> None:
        """Take the handlers off again: the next trial of a sweep logs to a folder of its own."""
        logging.captureWarnings(False)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            for handler in [handler for handler in logger.handlers if handler.get_name() == _HANDLER]:
                logger.removeHandler(handler)
                if isinstance(handler, logging.FileHandler):
                    handler.close()


def refuse_used_folder(path: Path, run_name: str | None) -> None:
    """Keep a new run from writing over an old one.

    Raises:
        ConfigError: if the folder already holds a run.
    """
    if (path / "summary.json").exists():
        raise ConfigError(f"run_name={run_name}: {path} already holds a run; take another name, or resume={path}.")


def _write_over(path: Path, content: Any) -> None:
    with suppress(OSError), path.open("r+b") as file:
        file.write(_to_json(content).encode())
        file.truncate()


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _point(link: Path, target: Path) -> None:
    """Let `link` point to `target`, replacing an older link in one step."""
    part = link.with_name(f"{link.name}.{os.getpid()}.part")
    part.symlink_to(os.path.relpath(target, link.parent))
    part.replace(link)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
