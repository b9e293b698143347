"""Write the HTML page of a sweep: ranking, progress, effect of each setting, curves, and all settings at a glance."""

import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

from imago.analysis.charts import Chart, Line, line_charts, numbers_or_none, parallel_chart
from imago.analysis.learning_curve import learning_curve
from imago.analysis.page import write_page
from imago.analysis.ranking import RankedSetting, Ranking, final_test_lines, ranking_rows, write_ranking
from imago.errors import DataError
from imago.runs.records import read_logged
from imago.text import duration_text, metric_text, percent_text

_NUM_CURVES = 5  # of the best settings
_MIN_FOR_IMPORTANCE = 4  # ranked settings: with fewer, the importance of a setting is chance; our own choice


def write_sweep_page(ranking: Ranking, file: Path) -> list[str]:
    """Write the page of a sweep, and its ranking anew; return the lines on the final test and the learning curve.

    Raises:
        DataError: if a file cannot be written.
    """
    write_ranking(ranking)
    header, *rows = ranking_rows(ranking)
    ranked = [setting for setting in ranking.settings if setting.rank is not None]
    curve, curve_text = learning_curve(ranking)
    notes = [*final_test_lines(ranking), *filter(None, [curve_text])]
    context = {
        "title": f"Sweep {ranking.directory.name}",
        "ranking": ranking,
        "cards": _cards(ranking, ranked),
        "header": [name or "rank" for name in header],
        "rows": rows,
        "notes": notes,
        "progress": [*curve, *_progress(ranking, ranked)],
        "importance": _importance(ranking, ranked),
        "curves": _curves(ranking, ranked[:_NUM_CURVES]),
        "parallel": _parallel(ranking, ranked),
    }
    write_page("sweep.html.j2", context, file)
    return notes


def _cards(ranking: Ranking, ranked: list[RankedSetting]) -> list[tuple[str, str, str]]:
    others = [setting.status for setting in ranking.settings if setting.rank is None]
    left_out = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
    cards = [
        (f"best {ranking.objective}", metric_text(ranked[0].mean), _text(ranked[0])) if ranked else ("ranked", "0", ""),
        ("settings ranked", str(len(ranked)), left_out),
        ("time", duration_text(sum(setting.seconds for setting in ranking.settings)), "sum over all runs"),
    ]
    if final_test_lines(ranking) and (accuracies := ranking.test.get("acc")):
        cards.insert(1, ("test accuracy of the best", percent_text(statistics.fmean(accuracies)), "tested once"))
    if ranking.saved_s:
        cards.append(("saved by pruning", duration_text(ranking.saved_s), ""))
    return cards


def _progress(ranking: Ranking, ranked: list[RankedSetting]) -> list[Chart]:
    """Draw the value of each setting, in the order of the trials, and the best so far."""
    values = [(setting.number, setting.mean or 0.0) for setting in sorted(ranked, key=lambda setting: setting.number)]
    choose = max if ranking.maximizes else min
    best = [choose(value for _, value in values[: index + 1]) for index in range(len(values))]
    numbers = list(range(1, len(values) + 1))
    lines = [Line("best so far", numbers, best, 1), Line("each", numbers, [value for _, value in values], 4)]
    return line_charts({f"{ranking.objective} in the order of the trials": lines}, "setting") if values else []


def _importance(ranking: Ranking, ranked: list[RankedSetting]) -> list[tuple[str, float, str]]:
    """Return each setting with the share of the variance of the objective that it explains, by Optuna's fANOVA."""
    keys = [key for key in ranking.keys if all(key in setting.settings for setting in ranked)]
    if len(ranked) < _MIN_FOR_IMPORTANCE or not keys or len({setting.mean for setting in ranked}) == 1:
        return []
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns: dict[str, Any] = {key: [setting.settings[key] for setting in ranked] for key in keys}
    distributions: dict[str, BaseDistribution] = {}
    for key, values in columns.items():
        numbers = numbers_or_none(values)
        if numbers is None:
            distributions[key] = CategoricalDistribution(sorted(set(values)))
        elif min(numbers) < max(numbers):
            distributions[key] = FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
            columns[key] = numbers
    study = optuna.create_study(direction="maximize" if ranking.maximizes else "minimize")
    for index, setting in enumerate(ranked):
        params = {key: columns[key][index] for key in distributions}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=setting.mean))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return [(key, float(share), f"{share:.0%}") for key, share in shares.items()]


def _curves(ranking: Ranking, best: list[RankedSetting]) -> list[Chart]:
    """Draw the objective of the first run of each of the best settings over the steps."""
    lines = []
    for style, setting in enumerate(best, 1):
        with suppress(DataError):  # its metrics.csv was removed
            steps, values = read_logged(ranking.directory / setting.runs[0])[ranking.objective]
            lines.append(Line(f"{setting.rank}. {_text(setting)}", steps, values, style))
    return line_charts({f"{ranking.objective} of the best {len(lines)}": lines}, "step") if lines else []


def _parallel(ranking: Ranking, ranked: list[RankedSetting]) -> Chart | None:
    if len(ranked) < 2:
        return None
    columns = {key: [setting.settings.get(key) for setting in ranked] for key in ranking.keys}
    columns[ranking.objective] = [f"{setting.mean:.4g}" for setting in ranked]
    return parallel_chart("all ranked settings, the best one highlighted", columns)


def _text(setting: RankedSetting) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.settings.items())
