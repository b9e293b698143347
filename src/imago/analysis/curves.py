"""Figures over several runs: how a metric grew, and what a setting did to it."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series

from imago.analysis.runs import load_curves, setting_names
from imago.errors import ConfigError, DataError

_COLOURS = [f"C{number}" for number in range(10)]  # matplotlib's cycle: as many as the eye tells apart
_GREY = "0.8"
_MOST_MARKED = 30  # points of a curve: a mark on each shows where values are, on more it only hides the line
_MOST_TICKS = 10  # values of a setting that stand side by side, evenly; more get an axis of numbers
_LOG_FROM = 30  # largest over smallest value from which an axis of numbers is logarithmic


def plot_curves(runs: DataFrame, metric: str = "val/acc") -> Figure:
    """Draw a logged metric over the steps, one line a run; seeds of the same settings share a color.

    Of more than ten settings, the ten with the best mean `val_acc` are named and the others gray.

    Args:
        runs: a table of `imago.analysis.runs.load_runs`, or some of its rows; runs without the metric are left out.
        metric: a column of `metrics.csv`.

    Raises:
        ConfigError: if none of the runs logged it; tells what they logged.
    """
    curves = {folder: curve for folder in runs["folder"] if len(curve := _curve(folder, metric))}
    if not curves:
        raise ConfigError(f"metric={metric} was logged by none of these {len(runs)} runs; logged: {_logged(runs)}.")
    figure, axes = _start(x="step", y=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = runs[runs["folder"].isin(list(curves))]
    for label, color, group in _colored(drawn, _telling_apart(drawn)):
        for number, folder in enumerate(group["folder"]):
            curve = curves[folder]
            marker = "." if len(curve) <= _MOST_MARKED else ""
            axes.plot(*curve.T.to_numpy(), color=color, marker=marker, label=label if number == 0 else None)
    _add_legend(figure, axes)
    return figure


def plot_effect(runs: DataFrame, setting: str = "optimizer.lr", metric: str = "test_acc") -> Figure:
    """Draw what came out for each value of a setting: every finished run, and the mean.

    Runs that differ in further settings get a color for each combination of those. Values stand side by side at even
    distances, unless there are more than ten numbers. Only `test_acc` has an interval.

    Args:
        runs: a table of `imago.analysis.runs.load_runs`, or some of its rows.
        setting: one of its columns, named as on the command line.
        metric: another one, e.g. `val_acc` or `images_per_s`.

    Raises:
        ConfigError: if the runs do not differ in the setting, or no finished run has the metric.
    """
    finished = _with_columns(runs, setting, metric)
    figure, axes = _start(x=setting, y=metric)
    others = [name for name in setting_names(finished) if name != setting]
    finished = finished.sort_values([*others, "seed"], key=_comparable)
    x = _positions(finished[setting], axes)
    for label, color, group in _colored(finished, others):
        interval = [group[metric] - group["test_low"], group["test_high"] - group[metric]]
        lines = interval if metric == "test_acc" else None
        axes.errorbar(x[group.index], group[metric], yerr=lines, fmt="o", color=color, alpha=0.6, markersize=4)
        axes.plot([], [], "o", color=color, label=label)
        if group[setting].duplicated().any():  # of single runs the mean would be the run
            means = DataFrame({"x": x, "y": group[metric]}).groupby(_comparable(group[setting])).mean()
            joined = "-" if pd.api.types.is_numeric_dtype(group[setting]) else "none"
            axes.plot(means["x"], means["y"], linestyle=joined, color=color, marker="D")
    has_means = finished.duplicated([*others, setting]).any()
    interval_note = " with its 95 % interval" if metric == "test_acc" else ""
    axes.set_title(f"dot: one run{interval_note}" + ("; diamond: mean" if has_means else ""))
    _add_legend(figure, axes)
    return figure


def _curve(folder: str, metric: str) -> DataFrame:
    """Give `step` and the metric where it was logged; without any rows if it never was."""
    try:
        curves = load_curves(Path(folder))
    except DataError:
        return DataFrame()
    return curves[["step", metric]].dropna() if {"step", metric} <= set(curves.columns) else DataFrame()


def _logged(runs: DataFrame) -> str:
    names: dict[str, None] = {}
    for folder in runs["folder"]:
        try:
            names |= dict.fromkeys(load_curves(Path(folder)).columns)
        except DataError:
            continue
    return ", ".join(names) or "nothing"


def _with_columns(runs: DataFrame, setting: str, metric: str) -> DataFrame:
    """Keep the finished runs that have the metric, after checking both names."""
    known = [*setting_names(runs), "seed"]
    if setting not in runs.columns:
        raise ConfigError(f"setting={setting}: these runs do not differ in it; they do in {', '.join(known)}.")
    if metric not in runs.columns or not pd.api.types.is_numeric_dtype(runs[metric]):
        raise ConfigError(f"metric={metric} is no column of numbers; take val_acc, test_acc, images_per_s or the like.")
    finished = runs[(runs["status"] == "finished") & runs[metric].notna()]
    if finished.empty:
        raise ConfigError(f"metric={metric}: none of these {len(runs)} runs is finished and has it.")
    return finished


def _telling_apart(runs: DataFrame) -> list[str]:
    """Name the columns that best tell these runs from each other."""
    return setting_names(runs) or (["seed"] if runs["seed"].nunique(dropna=False) > 1 else ["run"])


def _colored(runs: DataFrame, names: Sequence[str]) -> Iterator[tuple[str | None, Any, DataFrame]]:
    """Yield label, color and rows for each combination of these columns; one single combination has no label."""
    if not names:
        yield None, _COLOURS[0], runs
        return
    groups = list(runs.groupby(list(names), dropna=False))
    best_first = sorted(groups, key=lambda group: group[1]["val_acc"].mean(), reverse=True)
    named = {values for values, _ in best_first[: len(_COLOURS)]}
    rest = [group for values, group in groups if values not in named]
    for number, group in enumerate(rest):  # first, so that the named ones lie over them
        yield (f"{len(rest)} more" if number == 0 else None), _GREY, group
    colors = iter(_COLOURS)
    for values, group in groups:
        if values in named:
            label = ", ".join(f"{name}={_shown(value)}" for name, value in zip(names, values, strict=True))
            yield textwrap.fill(label, 40) + (f" ({len(group)} runs)" if len(group) > 1 else ""), next(colors), group


def _positions(values: Series, axes: Axes) -> Series:
    """Place runs along the x axis, with ticks: those of the same value beside each other where values are few."""
    numeric = pd.api.types.is_numeric_dtype(values)
    distinct = sorted(values.unique(), key=lambda value: (pd.isna(value), value if numeric else str(value)))
    if numeric and len(distinct) > _MOST_TICKS:
        if distinct[0] > 0 and values.max() / values.min() >= _LOG_FROM:
            axes.set_xscale("log")
        return values.astype("float64")
    axes.set_xticks(range(len(distinct)), [_shown(value) for value in distinct])
    axes.set_xlim(-0.5, len(distinct) - 0.5)
    keys = _comparable(values)
    place = keys.map({key: number for number, key in enumerate(_comparable(Series(distinct)))}).astype("float64")
    same = keys.groupby(keys)
    count, number = same.transform("size"), same.cumcount()
    return place + (number - (count - 1) / 2) * (0.4 / count).clip(upper=0.08)


def _comparable(values: Series) -> Series:
    """Numbers stay numbers; anything else, and what is missing, becomes the text that stands on the axis."""
    return values if pd.api.types.is_numeric_dtype(values) and values.notna().all() else values.map(_shown)


def _shown(value: Any) -> str:
    if pd.isna(value):
        return "null"
    return (
        f"{value:g}" if isinstance(value, float) else str(value).replace("$", r"\$")
    )  # two of them would be a formula


def _start(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.5), layout="constrained")  # no pyplot: nothing to close, shown once in a notebook
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Put it beside the axes, where it hides nothing."""
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
