"""A trial of a sweep while it runs: one setting, trained once for each repetition."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from optuna.trial import Trial, TrialState

from imago.analysis.ranking import objective_of
from imago.errors import DataError
from imago.runs.records import read_logged
from imago.sweep.space import Space
from imago.sweep.study import set_sampler
from imago.sweep.trial_run import TrialRun
from imago.text import metric_text, printable


class Plan(NamedTuple):
    """What a sweep runs.

    Attributes:
        directory: of the sweep; the runs are in its subdirectories 0, 1, ...
        space: what is searched.
        settings: the group `sweep`, as plain data, with its objective, the logged name of a metric, and its direction.
        is_monitored: whether the best checkpoint is chosen by it.
        num_threads: CPU threads of each process.
        flags: command line flags that every run gets, such as --config-dir=DIR.
        is_tested: whether the runs of the best setting are tested.
    """

    directory: Path
    space: Space
    settings: Mapping[str, Any]
    is_monitored: bool
    num_threads: int
    flags: Sequence[str]
    is_tested: bool = True

    @property
    def description(self) -> dict[str, Any]:
        """What `sweep.json` says, for the ranking."""
        keys = list(dict.fromkeys(parameter.key.lstrip("+") for parameter in self.space.parameters))
        names = ("objective", "direction")
        searched = {"keys": keys, "is_monitored": self.is_monitored, "num_runs": len(self.space.repeats)}
        return {name: self.settings[name] for name in names} | searched


class RunningTrial:
    """One trial of the study: a setting that is trained once for each repetition.

    Attributes:
        overrides: what the sampler has chosen.
        runs: one for each repetition; `waiting` and `active` are those that are to be started and those that run.
        failure: why the first run that failed has failed; the other repetitions are run all the same.
        pruned_at: the epoch after which the pruner has stopped it; None if it has not.
    """

    def __init__(self, trial: Trial, plan: Plan, lock: IO[bytes]) -> None:
        self.trial, self.plan, self.lock = trial, plan, lock
        study, settings, number = trial.study, plan.settings, trial.number
        self.overrides = plan.space.suggest(trial, lambda name: set_sampler(study, settings, number, name))
        first = number * len(plan.space.repeats)
        self.runs = [
            TrialRun(plan.directory / str(first + index), [*plan.space.fixed, *self.overrides, *repeat])
            for index, repeat in enumerate(plan.space.repeats)
        ]
        for run in self.runs:
            run.check_overrides()
        self.active = [run for run in self.runs if run.is_running() or not run.was_interrupted()]  # or just ended
        self.pruned_at: int | None = trial.user_attrs.get("pruned_at")
        self.waiting = [run for run in self.runs if run not in self.active and self.pruned_at is None]
        self.failure: str | None = None
        self.start_s = time.monotonic()

    @property
    def name(self) -> str:
        """The number of the trial and what it tries."""
        return printable(f"trial {self.trial.number} ({' '.join(self.overrides) or 'one setting'})")

    def update(self) -> bool:
        """Look at the runs; return whether all have ended."""
        for run in [run for run in self.active if not run.is_running()]:
            self.active.remove(run)
            if [run] == self.runs and run.summary.get("status") == "finished":  # before it was stopped
                self.pruned_at = None
            if self.pruned_at is None and (failure := run.failure()):
                self.failure = self.failure or f"run {run.name}: {failure}"
        if self.plan.settings["pruner"] != "none" and self.pruned_at is None and self.runs[0] in self.active:
            self._prune()
        if self.pruned_at is not None or (self.failure and self.plan.settings["fail_fast"]):
            self.waiting.clear()
            self.stop()
        return not self.active and not self.waiting

    def stop(self) -> None:
        """Stop the runs, which save their state."""
        for run in self.active:
            run.stop()

    def result(self) -> tuple[TrialState, float | None, str]:
        """Return the state, the objective and a text when all runs have ended."""
        if self.pruned_at is not None:
            pruner = self.plan.settings["pruner"]
            name = pruner["_target_"].rpartition(".")[2] if isinstance(pruner, Mapping) else pruner
            reason = f"{name}, after epoch {self.pruned_at}"
            for run in self.runs:
                if run.summary.get("status") in ("stopped", "running"):
                    run.mark("pruned", reason)
            return TrialState.PRUNED, None, f"pruned ({reason})"
        objective = self.plan.settings["objective"]
        found = [objective_of(run.summary, objective, self.plan.is_monitored) for run in self.runs]
        values = [value for value in found if value is not None]
        if self.failure is None and len(values) < len(found):
            self.failure = f"{objective} was not logged, or is not finite"
        if self.failure is not None:
            return TrialState.FAIL, None, f"failed: {printable(self.failure)}"
        mean = sum(values) / len(values)
        of_runs = f", mean of {len(values)} runs" if len(values) > 1 else ""
        return TrialState.COMPLETE, mean, f"{objective} {metric_text(mean)}{of_runs}"

    def _prune(self) -> None:
        """Report the new values of the first run to the study, one each validation, until the pruner stops it."""
        logged: dict[str, Any] = {}
        with suppress(DataError):  # nothing is logged yet
            logged = read_logged(self.runs[0].path)
        _, values = logged.get(self.plan.settings["objective"], ((), ()))
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        for epoch in range(len(reported) + 1, len(values) + 1):
            self.trial.report(values[epoch - 1], epoch)
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned_at", epoch)  # before the signal: a restart has to know it
                self.pruned_at = epoch
                return
