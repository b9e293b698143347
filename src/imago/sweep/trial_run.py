"""Start, adopt, watch and stop the training process of one run of a sweep."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from imago.analysis.ranking import TRIAL_FILE
from imago.errors import ConfigError
from imago.files import read_json, write_json
from imago.paths import PROJECT_ROOT, checkpoint_file, quote_for_hydra, short_path
from imago.runs.signals import RANK_VARIABLES
from imago.sweep.study import is_of_a_machine
from imago.system import IS_POSIX, lock, own_session, stop, try_lock

_OUTPUT_FILE = "output.log"  # what the process prints
_LOCK_FILE = ".trial.lock"  # with the number of the process


class TrialRun:
    """One training process of a sweep, in a directory of its own.

    The process inherits a lock on a file in the directory, so that it is known to run also when the process that
    started it has been killed. In Windows, which has no such locks, the number of the process in the file says so.
    """

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path = path
        self.overrides = list(overrides)
        self.process: subprocess.Popen | None = None
        self._is_signalled = False
        self.slot: int = read_json(path / TRIAL_FILE).get("slot", 0)

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    @property
    def name(self) -> str:
        return self.path.name

    def start(self, slot: int, flags: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process on a share of the machine, or continue an interrupted run from its last checkpoint.

        Raises:
            DataError: if the directory cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.slot = slot
        write_json(self.path / TRIAL_FILE, {"overrides": self.overrides, "slot": slot})
        script = [sys.executable, str(PROJECT_ROOT / "src" / "train.py"), *flags]
        if checkpoint_file(self.path, "last").is_file():
            arguments = [f"resume={quote_for_hydra(str(self.path))}"]
        else:
            arguments = [*self.overrides, f"hydra.run.dir={quote_for_hydra(str(self.path))}"]
        variables = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        with (self.path / _OUTPUT_FILE).open("ab") as output, (self.path / _LOCK_FILE).open("wb") as file:
            lock(file)
            self.process = subprocess.Popen(
                [*script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables | dict(environment),
                pass_fds=[file.fileno()] if IS_POSIX else [],
                **own_session(),  # Ctrl-C reaches it through `stop` only
            )
            file.write(str(self.process.pid).encode())

    def is_running(self) -> bool:
        """Return whether the process runs, also if another process started it."""
        if self.process is not None:
            return self.process.poll() is None
        with suppress(FileNotFoundError), (self.path / _LOCK_FILE).open("rb") as file:
            return not try_lock(file) if IS_POSIX else bool(self._adopted_pid())
        return False

    def stop(self) -> None:
        """Send SIGTERM, once: the run saves its state and exits, with all its ranks."""
        if not self._is_signalled and self.is_running():
            pid = self.process.pid if self.process is not None else self._adopted_pid()
            if pid:
                self._is_signalled = True
                stop(pid)

    def _adopted_pid(self) -> int:
        """Return the number of a process that another one has started; 0 if this machine has no such process.

        It is just being started, or it runs on another machine, where the number means another process.
        """
        pid = int((self.path / _LOCK_FILE).read_text("utf-8") or 0)
        with suppress(psutil.Error):
            if pid and quote_for_hydra(str(self.path)) in " ".join(psutil.Process(pid).cmdline()):
                return pid
        return 0

    def check_overrides(self) -> None:
        """Raise a ConfigError if the directory holds a run with other settings, which the study does not know."""
        saved = read_json(self.path / TRIAL_FILE).get("overrides", self.overrides)
        if _without_paths(saved) != _without_paths(self.overrides):
            raise ConfigError(
                f"{short_path(self.path)} holds a run with other settings, which the storage of this sweep does not "
                "know: choose another sweep_name."
            )

    def was_interrupted(self) -> bool:
        """Return whether a run that does not run any more has to be continued: it neither finished nor failed."""
        return self.summary.get("status") not in ("finished", "failed", "pruned")

    def failure(self) -> str | None:
        """Return why a run that has ended failed; None if it finished."""
        summary, code = self.summary, self.process.returncode if self.process is not None else None
        if summary.get("status") == "finished" and not code:
            return None
        if summary.get("status") in ("failed", "stopped") and summary.get("reason"):
            return str(summary["reason"])
        if errors := [line for line in self._last_lines() if line.startswith("error: ")]:
            return errors[-1].removeprefix("error: ")
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited with {code}"
        if code is None:  # started by another process
            how = "was killed, or its machine went down"
        return f"the process {how}; see {self.path / _OUTPUT_FILE}"

    def mark(self, status: str, reason: str) -> None:
        """Write to the summary how the sweep has ended this run."""
        write_json(self.path / "summary.json", self.summary | {"status": status, "reason": reason})

    def _last_lines(self) -> list[str]:
        with suppress(OSError):
            return (self.path / _OUTPUT_FILE).read_text("utf-8", errors="replace").splitlines()[-50:]
        return []


def _without_paths(overrides: Sequence[str]) -> list[str]:
    return sorted(text for text in overrides if not is_of_a_machine(text))
