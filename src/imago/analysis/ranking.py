"""Rank the settings of a sweep by their objective in validation, from its run directories."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imago.errors import DataError
from imago.files import read_json, write_csv, write_text
from imago.runs.records import RunRecord, read_records
from imago.text import duration_text, markdown_table, metric_text, percent_text, printable, shortened, table_lines

TRIAL_FILE = "trial.json"  # settings of a run as typed, also of one that fails before it writes them itself
SWEEP_FILE = "sweep.json"  # objective, direction, searched settings and final test of a sweep
_SEVERITY = {"running": 1, "stopped": 2, "died": 3, "pruned": 4, "failed": 5}  # the worst run's status counts
_MAX_REASON_CHARS = 60  # in the printed table; the CSV has all; our own choice


@dataclass
class RankedSetting:
    """One setting of a sweep: its searched settings by key, and what its runs reached.

    Attributes:
        settings: the values of the settings that are searched, as typed.
        runs: names of the run directories, one for each seed and fold.
        values: the objective of each run that finished.
        status: finished, pruned, failed, stopped, died or running; finished only if all runs are.
        rank: from 1 for the best; None if not all runs finished.
    """

    settings: dict[str, str]
    runs: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    status: str = "finished"
    reason: str = ""
    rank: int | None = None

    @property
    def number(self) -> int:
        """The number of its first run, in the order of the trials."""
        return int(self.runs[0]) if self.runs[0].isdigit() else 0

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation between the runs; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Ranking:
    """The settings of a sweep, best first, then those that did not finish.

    Attributes:
        keys: the settings that are searched.
        objective: logged name of the metric, such as val/acc.
        maximizes: whether more is better.
        test: the final test of the best setting; empty before it.
    """

    directory: Path
    keys: list[str]
    objective: str
    maximizes: bool
    settings: list[RankedSetting]
    test: Mapping[str, Any]

    @property
    def best(self) -> RankedSetting | None:
        return self.settings[0] if self.settings and self.settings[0].rank == 1 else None

    @property
    def saved_s(self) -> float:
        """The time that pruning has saved: pruned settings would have taken as long as the mean of the finished."""
        finished = [setting.seconds for setting in self.settings if setting.rank is not None]
        pruned = [setting.seconds for setting in self.settings if setting.status == "pruned"]
        return max(0.0, len(pruned) * statistics.fmean(finished) - sum(pruned)) if finished else 0.0


def rank_settings(directory: Path) -> Ranking:
    """Read the runs of a sweep and rank their settings.

    Raises:
        DataError: if the directory is not that of a sweep.
    """
    sweep = read_json(directory / SWEEP_FILE)
    if not _is_description(sweep):
        raise DataError(f"{printable(directory)} is not the directory of a sweep: it has no readable {SWEEP_FILE}.")
    found = ((run.name, _overrides(run)) for run in sorted(directory.iterdir(), key=_run_number) if run.is_dir())
    typed = {name: overrides for name, overrides in found if overrides is not None}
    keys = [str(key) for key in sweep.get("keys") or ()]
    records = {record.run: record for record in read_records(directory)}
    ranked: dict[tuple[str, ...], RankedSetting] = {}
    seen: list[dict[str, str]] = []
    for name, overrides in typed.items():
        if overrides in seen:  # two processes of the sweep chose alike at the same time
            continue
        seen.append(overrides)
        values = {key: overrides[key] for key in keys if key in overrides}
        setting = ranked.setdefault(tuple(f"{key}={value}" for key, value in values.items()), RankedSetting(values))
        _add_run(setting, name, records.get(name), read_json(directory / name / "summary.json"), sweep)
    for setting in ranked.values():
        if setting.status == "finished" and len(setting.runs) < sweep.get("num_runs", 1):
            setting.status, setting.reason = "stopped", f"{len(setting.runs)} of {sweep['num_runs']} runs"
    maximizes = sweep.get("direction") != "minimize"
    complete = [setting for setting in ranked.values() if setting.status == "finished" and setting.values]
    complete.sort(key=lambda setting: setting.mean or 0.0, reverse=maximizes)
    for rank, setting in enumerate(complete, 1):
        setting.rank = rank
    others = [setting for setting in ranked.values() if setting.rank is None]
    return Ranking(directory, keys, sweep["objective"], maximizes, [*complete, *others], sweep.get("test") or {})


def _is_description(sweep: Mapping[str, Any]) -> bool:
    """Return whether a sweep.json has the fields that the ranking reads, of their types."""
    values: dict[str, Any] = {"keys": [], "num_runs": 1, "test": {}} | dict(sweep)
    fields = {"objective": str, "keys": list, "num_runs": int, "test": dict}
    if not all(isinstance(values.get(name), kind) for name, kind in fields.items()):
        return False
    test = values["test"]
    if not test or isinstance(test.get("reason"), str):
        return True
    fields = {"acc": list, "interval_95": list, "num_images": int}
    if not all(isinstance(test.get(name), kind) for name, kind in fields.items()):
        return False
    are_numbers = all(isinstance(value, int | float) for value in test["acc"] + test["interval_95"])
    return are_numbers and bool(test["acc"]) and len(test["interval_95"]) == 2


def write_ranking(ranking: Ranking) -> None:
    """Write ranking.csv and ranking.md to the directory of the sweep."""
    headers = ["rank", *ranking.keys, ranking.objective, "std", "runs", "epochs", "seconds", "status", "reason"]
    rows = [
        [setting.rank or "", *(setting.settings.get(key, "") for key in ranking.keys), _exact(setting.mean),
         _exact(setting.std), " ".join(setting.runs), setting.epochs, round(setting.seconds, 1), setting.status,
         setting.reason]
        for setting in ranking.settings
    ]  # fmt: skip
    write_csv(ranking.directory / "ranking.csv", [headers, *rows])
    table = markdown_table(ranking_rows(ranking))
    title = f"# Sweep {printable(ranking.directory.name)}, ranked by {ranking.objective}"
    write_text(ranking.directory / "ranking.md", "\n".join([title, "", *table, "", *final_test_lines(ranking)]) + "\n")


def ranking_text(ranking: Ranking, max_rows: int | None = None) -> str:
    """Format the ranking in columns for the terminal, at most `max_rows` settings of it."""
    rows = ranking_rows(ranking)
    shown = rows if max_rows is None else rows[: max_rows + 1]
    more = [f"and {len(rows) - len(shown)} more in ranking.csv"] if len(rows) > len(shown) else []
    return "\n".join([*table_lines(shown), *more])


def final_test_lines(ranking: Ranking) -> list[str]:
    """Return what the final test of the best setting says; empty before it."""
    test = ranking.test
    if not test or ranking.best is None or test.get("runs") != ranking.best.runs:  # of an earlier best setting
        return []
    if "reason" in test:
        return [f"test of the best setting: {test['reason']}"]
    accuracies = test["acc"]
    if len(accuracies) == 1:
        low, high = test["interval_95"]
        spread = f", 95 % interval {100 * low:.2f} to {100 * high:.2f}"
    else:
        spread = f" ± {100 * statistics.stdev(accuracies):.2f} over {len(accuracies)} runs"
    mean = percent_text(statistics.fmean(accuracies))
    return [f"test of the best setting, chosen by {ranking.objective}: {mean}{spread}, {test['num_images']:,} images"]


def objective_of(summary: Mapping[str, Any], name: str, is_monitored: bool) -> float | None:
    """Return a metric of validation at the best epoch of a run; None if the run has none.

    `is_monitored` says whether the best epoch is the best by this metric.
    """
    scores = summary.get("val") or {}
    value = summary.get("best_value") if is_monitored else scores.get(name.removeprefix("val/"))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _add_run(
    setting: RankedSetting, name: str, record: RunRecord | None, summary: Mapping[str, Any], sweep: Mapping[str, Any]
) -> None:
    setting.runs.append(name)
    status = record.status if record else str(summary.get("status", "failed"))  # a run without a step has no record
    value = objective_of(summary, sweep["objective"], sweep.get("is_monitored", True))
    if status == "finished" and value is not None:
        setting.values.append(value)
    else:
        if status == "finished":
            status, setting.reason = "failed", f"{sweep['objective']} was not logged"
        reason = (record.reason if record else summary.get("reason")) or setting.reason
        if _SEVERITY.get(status, 0) >= _SEVERITY.get(setting.status, 0):
            setting.status, setting.reason = status, reason
    setting.epochs += (record.epochs if record else summary.get("epochs")) or 0
    setting.seconds += (record.seconds if record else summary.get("seconds")) or 0.0


def _overrides(run: Path) -> dict[str, str] | None:
    """Return the typed overrides of a run by their keys; None if the directory is not that of a run."""
    for name in (TRIAL_FILE, "provenance.json"):
        overrides = read_json(run / name).get("overrides")
        if isinstance(overrides, list):
            pairs = (str(override).lstrip("+").partition("=") for override in overrides)
            return {key: value for key, _, value in pairs}
    return None


def _run_number(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdigit() else 0, run.name)


def ranking_rows(ranking: Ranking) -> list[list[str]]:
    """Return the rows of the printed table, with a header, as texts."""
    rows = [["", ranking.objective, *ranking.keys, "runs", "epochs", "time", "status"]]
    for setting in ranking.settings:
        value, spread = metric_text(setting.mean), f" ± {metric_text(setting.std)}" if setting.std is not None else ""
        reason = f": {shortened(setting.reason, _MAX_REASON_CHARS)}" if setting.reason else ""
        is_complete = len(setting.values) in (0, len(setting.runs))
        num_runs = str(len(setting.runs)) if is_complete else f"{len(setting.values)} of {len(setting.runs)}"
        rows.append(
            [str(setting.rank or ""), value + spread, *(setting.settings.get(key, "") for key in ranking.keys),
             num_runs, str(setting.epochs or ""), duration_text(setting.seconds), setting.status + reason]
        )  # fmt: skip
    return [[printable(cell) for cell in row] for row in rows]


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
