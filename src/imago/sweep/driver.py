"""Run the trials of a sweep as processes: start, adopt, prune and stop them, and report their results to the study."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import optuna
from optuna.trial import Trial, TrialState
from tqdm import tqdm

from imago.files import write_text
from imago.runs.signals import STOP_SIGNALS
from imago.sweep.machine import slot_variables
from imago.sweep.running_trial import Plan, RunningTrial
from imago.sweep.study import REPEATS, num_to_start, set_sampler
from imago.system import lock, own_session, try_lock
from imago.text import duration_text

_POLL_S = 0.5  # a trial takes minutes; our own choice
_MAX_REPEATS = 100  # settings in a row that were chosen before: then the search has nothing new; our own choice


class Driver:
    """Run the trials of a plan until the study has as many as it should.

    Attributes:
        stop_signal: number of the signal that has ended the sweep; None if none came.
    """

    def __init__(self, plan: Plan, study: optuna.Study) -> None:
        self.plan, self.study = plan, study
        self.stop_signal: int | None = None
        self._running: list[RunningTrial] = []
        self._has_failed = False
        (plan.directory / "drivers").mkdir(parents=True, exist_ok=True)
        with self._lock_trials():
            self._owner = _directory_id(plan.directory / "drivers" / "id")

    @property
    def failures(self) -> list[str]:
        """A line for each trial of the study that has failed, also in earlier starts and in other processes."""
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [trial.user_attrs["result"] for trial in failed if REPEATS not in trial.user_attrs]

    @property
    def num_elsewhere(self) -> int:
        """The number of trials that run in other processes."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) - len(self._running)

    @property
    def was_aborted(self) -> bool:
        """Whether it has ended at the first failure, by `fail_fast`."""
        return self._has_failed and self.plan.settings["fail_fast"]

    def missing_runs(self) -> list[str]:
        """Return the numbers of trials of this directory that have ended, and whose runs are not there any more."""
        num_runs = len(self.plan.space.repeats)
        ended = [
            trial.number
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs.get("owner") == self._owner
            if REPEATS not in trial.user_attrs
        ]
        return [str(number) for number in ended if not (self.plan.directory / str(number * num_runs)).is_dir()]

    def run_command(self, arguments: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess | None:
        """Run a command to its end and return its texts; None if a signal has stopped it."""
        settings: dict[str, Any] = {"env": variables, "encoding": "utf-8", "errors": "replace", **own_session()}
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)
        try:
            while self.stop_signal is None:
                with suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=_POLL_S)
                    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
        finally:
            process.kill()
            process.wait()
        return None

    def wait_for_lock(self, file: IO[bytes]) -> None:
        """Lock a file that another process may have locked, unless a signal comes."""
        while self.stop_signal is None and not try_lock(file):
            time.sleep(_POLL_S)

    def run(self, report: Callable[[], None]) -> None:
        """Run until nothing is left to start, or until a signal; `report` is called after each trial.

        Runs that are stopped save their state.
        """
        with tqdm(unit="trial", disable=None, leave=False) as bar:
            try:
                while self.stop_signal is None and not self.was_aborted:
                    self._adopt()
                    self._start_runs()
                    if not self._running:
                        return
                    bar.set_postfix_str("; ".join(running.name for running in self._running)[:100])
                    time.sleep(_POLL_S)
                    for running in [running for running in self._running if running.update()]:
                        bar.write(self._end(running))
                        bar.update()
                        try:
                            report()
                        except OSError as error:  # as on a full disk; the next trial writes it again
                            bar.write(f"the ranking is not written: {error}")
                    sys.stdout.flush()  # also where it is a pipe or a file
            finally:
                self._stop()

    def _adopt(self) -> None:
        """Take over the trials of a driver that has ended: their runs may go on, or have been interrupted.

        With a database, other machines may have directories of their own; their trials are left alone.
        """
        own = {running.trial.number for running in self._running}
        with self._lock_trials():
            for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                is_ours = self.plan.settings["storage"] is None or frozen.user_attrs.get("owner") == self._owner
                if frozen.number not in own and is_ours and (claim := self._claim(frozen.number)):
                    trial = Trial(self.study, frozen._trial_id)  # Optuna has no public way to go on with a trial
                    self._running.append(RunningTrial(trial, self.plan, claim))

    @contextmanager
    def _lock_trials(self) -> Iterator[None]:
        """Keep the other drivers of this directory from starting or adopting a trial within the block."""
        with (self.plan.directory / "drivers" / "trials.lock").open("ab") as file:
            lock(file)
            yield

    def _claim(self, number: int) -> IO[bytes] | None:
        """Lock a trial for this driver; return None if another one that is alive has it."""
        file = (self.plan.directory / "drivers" / f"{number}.lock").open("ab")
        if try_lock(file):
            return file
        file.close()
        return None

    def _start_runs(self) -> None:
        """Start a run in each free slot of the machine: of the present trials before new ones."""
        used = {run.slot for running in self._running for run in running.active}
        num_slots = self.plan.settings["parallel"]
        for slot in sorted(set(range(num_slots)) - used):
            running = next((running for running in self._running if running.waiting), None) or self._ask()
            if running is None or not running.waiting:  # its runs have ended before, as of a study that was removed
                return
            run = running.waiting.pop(0)
            run.start(slot, self.plan.flags, slot_variables(slot, num_slots, self.plan.num_threads))
            running.active.append(run)

    def _ask(self) -> RunningTrial | None:
        """Return a new trial; None if the study is complete or the time is over."""
        max_hours = self.plan.settings["max_hours"]
        started = [trial.datetime_start for trial in self.study.get_trials(deepcopy=False) if trial.datetime_start]
        if max_hours is not None and started and datetime.now() - min(started) > timedelta(hours=max_hours):
            return None
        with self._lock_trials():
            for _ in range(_MAX_REPEATS):
                if num_to_start(self.study, self.plan.settings) <= 0 or self._has_tried_all():
                    return None
                set_sampler(self.study, self.plan.settings, len(self.study.get_trials(deepcopy=False)))
                trial = self.study.ask()
                claim = self._claim(trial.number)
                assert claim is not None  # nobody else has this number
                trial.set_user_attr("owner", self._owner)
                running = RunningTrial(trial, self.plan, claim)
                if not self._ends_like_an_earlier_one(running):
                    self._running.append(running)
                    return running
        return None

    def _has_tried_all(self) -> bool:
        """Return whether a search without intervals has tried every combination."""
        if not all(parameter.choices for parameter in self.plan.space.parameters):
            return False
        trials = self.study.get_trials(deepcopy=False)
        num_tried = len({str(trial.params) for trial in trials if trial.state != TrialState.WAITING})
        return next(islice(self.plan.space.combinations(), num_tried, None), None) is None

    def _ends_like_an_earlier_one(self, running: RunningTrial) -> bool:
        """End a trial whose setting was tried before with the same result: its runs would be the same."""
        trials = self.study.get_trials(deepcopy=False)
        params = trials[running.trial.number].params
        finished = (trial for trial in trials if trial.params == params and trial.state.is_finished())
        if (earlier := next(finished, None)) is None:
            return False
        running.trial.set_user_attr(REPEATS, earlier.number)
        value = earlier.value if earlier.state == TrialState.COMPLETE else None
        self.study.tell(running.trial, value, state=earlier.state)
        running.lock.close()
        return True

    def _end(self, running: RunningTrial) -> str:
        """Report the result of a trial to the study; return a line for the terminal."""
        state, value, text = running.result()
        line = f"{running.name}: {text}"
        running.trial.set_user_attr("result", line)
        self.study.tell(running.trial, value, state=state)
        self._running.remove(running)
        running.lock.close()
        self._has_failed |= state == TrialState.FAIL
        return f"{line}, {duration_text(time.monotonic() - running.start_s)}"

    def _stop(self) -> None:
        """Stop all runs and wait until they have saved; their trials are continued by the next start."""
        while runs := [run for running in self._running for run in running.active if run.is_running()]:
            for run in runs:
                run.stop()
            time.sleep(_POLL_S)


def _directory_id(file: Path) -> str:
    """Return the content of a file, created with a random one: a name that no other machine's directory has."""
    if not file.exists():
        write_text(file, uuid4().hex)
    return file.read_text("utf-8")


@contextmanager
def handle_signals(driver: Driver) -> Iterator[None]:
    """Note a stop signal within the block; a second one leaves at once."""

    def handle(number: int, frame: Any) -> None:
        if driver.stop_signal is not None:
            raise KeyboardInterrupt
        driver.stop_signal = number

    old_handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
