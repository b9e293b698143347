"""Run a sweep from its settings: open the study, run the trials, rank them, and test the best setting once."""

import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from imago.analysis.ranking import SWEEP_FILE, Ranking, final_test_lines, rank_settings, ranking_text, write_ranking
from imago.errors import ConfigError, DataError, IncompleteError
from imago.files import make_writable, read_json, write_json
from imago.paths import PROJECT_ROOT, command, executable, quote_for_hydra, short_path
from imago.runs.failure import to_user_error
from imago.runs.run_directory import requeue_slurm_job
from imago.sweep.driver import Driver, handle_signals
from imago.sweep.running_trial import Plan
from imago.sweep.study import STORAGE_ERRORS, open_study
from imago.text import counted, duration_text, first_line, join_names

_MAX_ROWS = 20  # of the printed ranking; our own choice
_NUM_SEEDS = 3  # of the command that trains the best setting again; our own choice
_TEST_SETTINGS = ("tta", "trust")  # settings of the runs that eval.py has too


def run_sweep(plan: Plan, is_continued: bool) -> float:
    """Run a sweep to its end; print its ranking and what to type next.

    Args:
        plan: what to run.
        is_continued: whether the directory may hold a sweep, which is then continued or shared with other processes.

    Returns:
        The objective of the best setting; NaN if there is none.

    Raises:
        ConfigError: if the directory holds another sweep, or if settings do not fit.
        IncompleteError: if a trial failed.
        SystemExit, KeyboardInterrupt: after a stop signal.
    """
    directory = plan.directory
    if (directory / SWEEP_FILE).exists() and not is_continued:
        raise ConfigError(
            f"{short_path(directory)} already holds a sweep: type resume=auto to continue it, or another sweep_name."
        )
    make_writable(directory, "paths.log_dir=DIR")
    study = open_study(directory, plan.settings, plan.space, is_continued)
    write_json(directory / SWEEP_FILE, read_json(directory / SWEEP_FILE) | plan.description)
    threads = counted(plan.num_threads, "CPU thread")
    print(f"sweep in {short_path(directory)}, {threads} for each trial", flush=True)
    driver = Driver(plan, study)
    if missing := driver.missing_runs():
        print(f"trials {join_names(missing)} have ended, but their directories are gone: they are not ranked")
    try:
        with handle_signals(driver):
            driver.run(lambda: write_ranking(rank_settings(directory)))
            failures, num_elsewhere = driver.failures, driver.num_elsewhere
            if not num_elsewhere and not driver.was_aborted:
                _test_best(plan, driver)
    except (OSError, *STORAGE_ERRORS) as error:
        raise _explain(error, plan) from error
    if driver.stop_signal is not None:
        _leave(driver.stop_signal, directory)
    ranking = rank_settings(directory)
    write_ranking(ranking)
    _print_end(ranking, plan, num_elsewhere)
    if failures:
        raise IncompleteError("\n".join([f"{counted(len(failures), 'trial')} failed", *failures]))
    return ranking.best.mean if ranking.best and ranking.best.mean is not None else float("nan")


def _explain(error: Exception, plan: Plan) -> Exception:
    """Return the error of the user for a file that cannot be written, or a database that is lost."""
    if isinstance(error, OSError):
        error.filename = error.filename or str(plan.directory)  # a failed write of the journal names no file
        return to_user_error(error)
    fault = f"sweep.storage={plan.settings['storage']}: {first_line(error)}"
    return DataError(f"{fault}; repeat the command with sweep_name={plan.directory.name} resume=auto.")


def _leave(number: int, directory: Path) -> NoReturn:
    """Leave after a stop signal, as a run does; a job of SLURM is queued again after SIGUSR1."""
    again = [executable(), *sys.orig_argv[1:]]
    if not any(text.startswith("sweep_name=") for text in sys.argv):
        again.append(f"sweep_name={directory.name}")
    again += ["resume=auto"] if "resume=auto" not in again else []
    print(f"stopped; to continue: {shlex.join(again)}")
    if signal.Signals(number).name == "SIGUSR1":
        requeue_slurm_job()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(143)


def _test_best(plan: Plan, driver: Driver) -> None:
    """Evaluate the runs of the best setting on the test split, once; other processes wait, and a signal ends it.

    A sweep of seeds or folds only may be without a test, as a run may.
    """
    if not plan.is_tested:
        return
    file = plan.directory / SWEEP_FILE
    with (plan.directory / "drivers" / "test.lock").open("ab") as lock:
        driver.wait_for_lock(lock)
        best = rank_settings(plan.directory).best
        tested = read_json(file).get("test") or {}
        if best is None or (tested.get("runs") == best.runs and "acc" in tested):
            return
        results = [_test(plan.directory / run, plan, driver) for run in best.runs]
        if driver.stop_signal is not None:
            return
        needed = {"acc", "interval_95", "num_images"}  # a task may have other metrics only
        no_accuracy = "it has no accuracy with an interval"
        failed = next((result.get("reason", no_accuracy) for result in results if not needed <= result.keys()), None)
        first = results[0]
        test: dict[str, Any] = {"runs": best.runs}
        if failed is not None:
            test |= {"reason": failed}
        else:
            test |= {"acc": [result["acc"] for result in results], "interval_95": first["interval_95"]}
            test |= {"num_images": first["num_images"]}
        write_json(file, read_json(file) | {"test": test})


def _test(run: Path, plan: Plan, driver: Driver) -> dict[str, Any]:
    """Return the metrics of the test of a run: its own, else those of eval.py, or why that cannot evaluate it."""
    if test := read_json(run / "summary.json").get("test"):
        return test
    typed = [text for text in plan.space.fixed if text.partition("=")[0] in _TEST_SETTINGS]
    evaluation = [sys.executable, str(PROJECT_ROOT / "src" / "eval.py"), f"run={quote_for_hydra(str(run))}", *typed]
    result = driver.run_command(evaluation, os.environ | {"OMP_NUM_THREADS": str(plan.num_threads)})
    if result is None:
        return {"reason": "stopped"}
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return {"reason": errors[-1] if errors else f"eval.py exited with {result.returncode}"}
    return read_json(run / "eval" / "test" / "metrics.json")


def _print_end(ranking: Ranking, plan: Plan, num_elsewhere: int) -> None:
    lines = ["", ranking_text(ranking, _MAX_ROWS), ""]
    if ranking.saved_s:
        lines.append(f"pruning saved about {duration_text(ranking.saved_s)}")
    if num_elsewhere:
        others = counted(num_elsewhere, "trial")
        lines.append(f"not yet ended in other processes: {others}; the last process tests the best setting")
    lines += final_test_lines(ranking)
    if ranking.best is not None:
        best = [f"{key}={value}" for key, value in ranking.best.settings.items()]
        untested = [] if plan.is_tested else ["test=false"]
        typed = shlex.join(["-m", *_typed(plan.space.fixed), *best, *untested, f"seed={_more_seeds(plan)}"])
        lines += ["next:", f"  {command('train')} {typed}"]
        lines += [f"  {command('report')} run={shlex.quote(short_path(plan.directory))}"]
    print("\n".join(lines))


def _typed(overrides: Iterable[str]) -> list[str]:
    return [text.removeprefix("++") for text in overrides if text.partition("=")[0] not in ("seed", "test", "sweep")]


def _more_seeds(plan: Plan) -> str:
    """Return seeds that the sweep has not used."""
    typed = [text for repeat in (plan.space.fixed, *plan.space.repeats) for text in repeat]
    used = [int(text.partition("=")[2]) for text in typed if text.startswith("seed=")] or [0]
    return ",".join(str(max(used) + number) for number in range(1, 1 + _NUM_SEEDS))
