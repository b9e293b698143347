"""Figures over several runs: lines, colors, legends, ticks, and refused names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from pandas import DataFrame

from imago.analysis.curves import plot_curves, plot_effect
from imago.errors import ConfigError


def make_runs(tmp_path: Path, settings: list[dict], steps: int = 3) -> DataFrame:
    """Return a table like that of `load_runs`, with a metrics.csv for each row; accuracies rise from row to row."""
    rows = []
    for number, row in enumerate(settings):
        folder = tmp_path / str(number)
        folder.mkdir()
        acc = 0.5 + 0.01 * number
        curve = DataFrame({"step": range(steps), "val/acc": acc, "lr": np.nan})
        curve.to_csv(folder / "metrics.csv", index=False)
        identity = {"run": f"train/{number}", "status": "finished", "data": "Shapes", "model": "SimpleCNN", "seed": 1}
        results = {"val_acc": acc, "test_acc": acc, "test_low": acc - 0.02, "test_high": acc + 0.03}
        rows.append(identity | row | results | {"run_dir": str(folder)})
    return DataFrame(rows)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def dots(figure: Figure) -> list[tuple[float, float]]:
    """Return the positions of the runs in a figure of `plot_effect`."""
    return [tuple(point) for bar in figure.axes[0].containers for point in bar.lines[0].get_xydata()]


def diamonds(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    return [tuple(point) for line in lines for point in line.get_xydata()]


def test_each_run_is_a_line_and_seeds_share_color_and_name(tmp_path: Path):
    runs = make_runs(tmp_path, [{"optimizer.lr": lr, "seed": seed} for lr in (0.1, 0.01) for seed in (1, 2)])
    figure = plot_curves(runs)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == pytest.approx([0.52, 0.53, 0.5, 0.51])
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert legend(figure) == ["optimizer.lr=0.01 (2 runs)", "optimizer.lr=0.1 (2 runs)"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "val/acc")


def test_runs_that_differ_only_in_the_seed_are_named_by_it_and_equal_ones_by_their_path(tmp_path: Path):
    runs = make_runs(tmp_path, [{"seed": 1}, {"seed": 2}, {"seed": 2}])
    assert sorted(legend(plot_curves(runs[:2]))) == ["seed=1", "seed=2"]
    assert sorted(legend(plot_curves(runs[1:]))) == ["run=train/1", "run=train/2"]


def test_of_many_settings_the_best_ten_are_named_and_the_rest_is_gray(tmp_path: Path):
    figure = plot_curves(make_runs(tmp_path, [{"optimizer.lr": 0.1 * n} for n in range(1, 14)]))
    names = legend(figure)
    assert names[0] == "3 more"
    assert names[1:] == [f"optimizer.lr={n / 10}" for n in range(13, 3, -1)]
    assert len(figure.axes[0].lines) == 13


@pytest.mark.parametrize("metric", ["val/accuracy", "lr"])
def test_a_metric_that_no_run_logged_is_refused_and_runs_without_it_are_left_out(metric: str, tmp_path: Path):
    runs = make_runs(tmp_path, [{"seed": 1}, {"seed": 2}])
    with pytest.raises(ConfigError, match=rf"metric={metric} .* logged: val/acc"):
        plot_curves(runs, metric)
    (tmp_path / "1" / "metrics.csv").unlink()
    assert len(plot_curves(runs).axes[0].lines) == 1


def test_a_setting_in_dollars_is_no_formula(tmp_path: Path):
    runs = make_runs(tmp_path, [{"data.root": "/a$b{$c"}, {"data.root": "/d"}])
    plot_curves(runs).draw_without_rendering()
    plot_effect(runs, "data.root").draw_without_rendering()


def test_an_effect_shows_each_run_with_its_interval_and_the_mean_of_each_value(tmp_path: Path):
    runs = make_runs(tmp_path, [{"optimizer.lr": lr, "seed": seed} for lr in (0.1, 0.01) for seed in (1, 2)])
    figure = plot_effect(runs)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.lr", "test_acc")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1"]
    points = sorted(dots(figure))
    assert [y for _, y in points] == pytest.approx([0.52, 0.53, 0.50, 0.51])
    assert [x for x, _ in points] == [0, 0, 1, 1]
    assert np.array(diamonds(figure)) == pytest.approx(np.array([[0, 0.525], [1, 0.505]]))
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(0.05)


def test_other_settings_that_differ_get_different_colors(tmp_path: Path):
    runs = make_runs(
        tmp_path, [{"optimizer.lr": lr, "model.dropout": dropout} for lr in (0.1, 0.2) for dropout in (0.0, 0.5)]
    )
    assert sorted(legend(plot_effect(runs))) == ["model.dropout=0.0 (2 runs)", "model.dropout=0.5 (2 runs)"]


@pytest.mark.parametrize(
    ("values", "texts", "style"),
    [
        (["SGD", "AdamW", None], ["AdamW", "SGD", "null"], "None"),
        ([10.0, 9.0, None], ["9.0", "10.0", "null"], "-"),  # as numbers, not as texts
    ],
)
def test_only_numbers_are_joined_by_a_line_and_a_missing_value_is_null(values, texts, style: str, tmp_path: Path):
    runs = make_runs(tmp_path, [{"optimizer": value, "seed": seed} for value in values for seed in (1, 2)])
    figure = plot_effect(runs, "optimizer", "val_acc")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == texts
    assert [y for _, y in sorted(diamonds(figure))] == pytest.approx([0.525, 0.505, 0.545])
    assert {line.get_linestyle() for line in figure.axes[0].lines if line.get_marker() == "D"} == {style}


def test_many_values_are_named_without_overlap_and_single_runs_have_no_mean(tmp_path: Path):
    figure = plot_effect(make_runs(tmp_path, [{"optimizer.lr": 10.0**-n} for n in range(12)]))
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == [str(10.0**n) for n in range(-11, 1)]
    figure.draw_without_rendering()
    assert {label.get_rotation() for label in labels} == {45}
    assert (len(dots(figure)), len(diamonds(figure))) == (12, 0)


def test_unfinished_runs_do_not_count(tmp_path: Path):
    runs = make_runs(tmp_path, [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2, "status": "died"}])
    runs["epochs"] = pd.array([3, None], dtype="Int64")
    assert len(dots(plot_effect(runs))) == len(dots(plot_effect(runs, metric="epochs"))) == 1
    with pytest.raises(ConfigError, match="none of these 1 runs is finished"):
        plot_effect(runs[1:])


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path):
    runs = make_runs(tmp_path, [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}])
    with pytest.raises(ConfigError, match=r"setting=optimizer.lrr: .* differ in it; they differ in optimizer.lr, seed"):
        plot_effect(runs, "optimizer.lrr")
    for metric in ("acc", "status"):
        with pytest.raises(ConfigError, match=f"metric={metric} is not a column of numbers"):
            plot_effect(runs, metric=metric)
