"""Draw figures over several runs: a metric over the steps, and the effect of a setting."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series
from pandas.api.types import is_numeric_dtype

from imago.analysis.page import read_or_none
from imago.analysis.runs import setting_names
from imago.errors import ConfigError
from imago.runs.records import read_logged
from imago.settings import typed_value

_COLORS = [f"C{number}" for number in range(10)]  # matplotlib's cycle
_MAX_MARKED = 30  # points of a curve with markers: on more, they would hide the line; our own choice


def plot_curves(runs: DataFrame, metric: str = "val/acc") -> Figure:
    """Draw a logged metric over the steps, one line for each run; seeds of the same settings share a color.

    Of more than ten settings, the ten with the best mean `val_acc` are named and the others are gray.

    Args:
        runs: a table of `imago.analysis.runs.load_runs`, or some of its rows; runs without the metric are left out.
        metric: a column of `metrics.csv`.

    Raises:
        ConfigError: if none of the runs logged it; names the metrics that were logged.
    """
    logged = {run_dir: read_or_none([], read_logged, Path(run_dir)) or {} for run_dir in runs["run_dir"]}
    drawn = runs[[metric in logged[run_dir] for run_dir in runs["run_dir"]]]
    if drawn.empty:
        known = ", ".join(dict.fromkeys(name for curves in logged.values() for name in curves)) or "nothing"
        raise ConfigError(f"metric={metric} was logged by none of these {len(runs)} runs; logged: {known}.")
    figure, axes = _new_figure("step", metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = setting_names(drawn) or (["seed"] if drawn["seed"].nunique(dropna=False) > 1 else ["run"])
    for label, color, group in _color_groups(drawn, names):
        for number, run_dir in enumerate(group["run_dir"]):
            steps, values = logged[run_dir][metric]
            marker = "." if len(steps) <= _MAX_MARKED else ""
            axes.plot(steps, values, color=color, marker=marker, label=label if number == 0 else None)
    _add_legend(figure, axes)
    return figure


def plot_effect(runs: DataFrame, setting: str = "optimizer.lr", metric: str = "test_acc") -> Figure:
    """Draw a metric over the values of a setting, equally spaced: each finished run, and the mean per value.

    Runs that differ in other settings get one color for each combination of these. Only `test_acc` has an interval.

    Args:
        runs: a table of `imago.analysis.runs.load_runs`, or some of its rows.
        setting: one of its columns, named as on the command line.
        metric: another column, e.g. `val_acc` or `images_per_s`.

    Raises:
        ConfigError: if the runs do not differ in the setting, or no finished run has the metric.
    """
    finished = _finished_runs(runs, setting, metric)
    figure, axes = _new_figure(setting, metric)
    values, has_interval = finished[setting], metric == "test_acc"
    is_number = is_numeric_dtype(values)
    numbers, distinct = pd.factorize(values if is_number else values.map(_value_text), sort=True, use_na_sentinel=False)
    axes.set_xticks(range(len(distinct)), map(_value_text, distinct), rotation=45 if len(distinct) > 10 else 0)
    x = Series(numbers, values.index)  # the number of the value in ascending order
    for label, color, group in _color_groups(finished, [name for name in setting_names(finished) if name != setting]):
        interval = [group[metric] - group["test_low"], group["test_high"] - group[metric]] if has_interval else None
        axes.errorbar(x[group.index], group[metric], yerr=interval, fmt="o", color=color, alpha=0.6, markersize=4)
        axes.plot([], [], "o", color=color, label=label)
        if group[setting].duplicated().any():  # the mean of a single run is the run
            means = group.groupby(x)[metric].mean()
            axes.plot(means.index, means, linestyle="-" if is_number else "none", color=color, marker="D")
    axes.set_title(f"dot: one run{' with its 95 % interval' if has_interval else ''}; diamond: mean of several")
    _add_legend(figure, axes)
    return figure


def _finished_runs(runs: DataFrame, setting: str, metric: str) -> DataFrame:
    """Return the finished runs that have the metric, after checking both names."""
    if setting not in runs.columns:
        names = ", ".join([*setting_names(runs), "seed"])
        raise ConfigError(f"setting={setting}: these runs do not differ in it; they differ in {names}.")
    if metric not in runs.columns or not is_numeric_dtype(runs[metric]):
        raise ConfigError(f"metric={metric} is not a column of numbers; use val_acc, test_acc or images_per_s.")
    finished = runs[(runs["status"] == "finished") & runs[metric].notna()]
    if finished.empty:
        raise ConfigError(f"metric={metric}: none of these {len(runs)} runs is finished and has it; choose other runs.")
    return finished


def _color_groups(runs: DataFrame, names: Sequence[str]) -> Iterator[tuple[str | None, str, DataFrame]]:
    """Yield label, color and rows for each combination of these columns; without columns there is no label."""
    if not names:
        yield None, _COLORS[0], runs
        return
    groups = sorted(runs.groupby(list(names), dropna=False), key=lambda group: -group[1]["val_acc"].mean())
    others = groups[len(_COLORS) :]
    for number, (_, group) in enumerate(others):  # first, so that the colored ones are drawn over them
        yield (f"{len(others)} more" if number == 0 else None), "0.8", group
    for (values, group), color in zip(groups, _COLORS, strict=False):
        label = ", ".join(f"{name}={_value_text(value)}" for name, value in zip(names, values, strict=True))
        yield textwrap.fill(label, 40) + (f" ({len(group)} runs)" if len(group) > 1 else ""), color, group


def _value_text(value: Any) -> str:
    if pd.isna(value):
        return "null"
    # matplotlib reads text between two dollar signs as a formula.
    rounded = float(f"{value:.12g}") if isinstance(value, float) else value  # 0.1 + 0.2 is 0.3
    return typed_value(rounded).replace("$", r"\$")


def _new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # Inches, our own choice. Without pyplot, a notebook shows the figure once.
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend outside the axes, where it hides nothing."""
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
