"""The learning curve of a sweep: the fit against a known law, its interval by simulation, and too few points."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from imago.analysis.learning_curve import fit_power_law, learning_curve
from imago.analysis.ranking import rank_settings
from imago.analysis.sweep_page import write_sweep_page

NUMBERS = np.array([4500.0, 9000, 22500, 45000])


def law(numbers: np.ndarray, offset: float = 0.05, factor: float = 0.2, exponent: float = 0.35) -> np.ndarray:
    return 1 - offset - factor * (numbers / 45000) ** -exponent


def make_curve(folder: Path, fractions: list[float], seeds: tuple[int, ...] = (1,), key: str = "data.train_fraction"):
    """Write the directories of a sweep over the share of training images, with accuracies of a known law."""
    folder.mkdir(parents=True)
    sweep = {"objective": "val/acc", "direction": "maximize", "keys": [key], "is_monitored": True}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    for index, fraction in enumerate(fraction for fraction in fractions for _ in seeds):
        run = folder / str(index)
        run.mkdir()
        seed = seeds[index % len(seeds)]
        (run / "trial.json").write_text(json.dumps({"overrides": [f"{key}={fraction}", f"seed={seed}"]}))
        acc = float(law(np.array(45000 * fraction))) + 0.001 * seed
        summary = {"status": "finished", "best_value": acc, "val": {"acc": acc, "num_images": 5000}}
        (run / "summary.json").write_text(json.dumps(summary | {"num_train_images": round(45000 * fraction)}))
    return rank_settings(folder)


def test_a_law_without_noise_is_found_again():
    points = np.stack([NUMBERS, law(NUMBERS), np.full(4, 1e-4)])
    x = np.array([4500.0, 45000, 90000])
    fitted, gains = fit_power_law(points, x, num_draws=20)
    np.testing.assert_allclose(fitted[0], law(x), atol=1e-6)
    assert gains[0] == pytest.approx(law(x)[2] - law(x)[1])
    assert (fitted.shape, gains.shape) == ((21, 3), (21,))
    np.testing.assert_array_equal(fitted, fit_power_law(points, x, num_draws=20)[0])
    assert (gains >= 0).all()


@pytest.mark.slow
def test_the_interval_contains_the_true_gain():
    random, num_val, num_repeats, inside = np.random.default_rng(0), 5000, 60, 0
    truth = float(law(np.array(90000.0)) - law(np.array(45000.0)))
    for _ in range(num_repeats):
        accuracy = random.binomial(num_val, law(NUMBERS)) / num_val
        error = np.sqrt(accuracy * (1 - accuracy) / num_val)
        low, high = np.quantile(fit_power_law(np.stack([NUMBERS, accuracy, error]), NUMBERS, 60)[1][1:], (0.025, 0.975))
        inside += low <= truth <= high
    assert inside >= 52  # of 60, for 95 %: fewer once in 100 times; more, as the misfit enlarges the errors


def test_the_text_and_the_chart_name_the_numbers(tmp_path: Path):
    charts, text = learning_curve(make_curve(tmp_path / "x", [0.1, 0.2, 0.5, 1.0], (1, 2, 3)))
    found = re.fullmatch(
        r"twice the data \(90,000 training images\): \+(.+) points of val accuracy \((.+) to (.+)\), .+", text
    )
    gain, low, high = map(float, found.groups())
    assert low < gain < high
    assert gain == pytest.approx(100 * float(law(np.array(90000.0)) - law(np.array(45000.0))), abs=0.11)
    [chart] = charts
    assert [line.name for line in chart.lines][:2] == ["measured", "power law"]
    assert chart.lines[0].x == [4500, 9000, 22500, 45000]
    half = [high - low for low, high in zip(chart.lines[2].y, chart.lines[3].y, strict=True)]
    mean = law(NUMBERS) + 0.002
    expected = 2 * 1.96 * np.sqrt(mean * (1 - mean) / 5000 + 0.001**2 / 3)
    np.testing.assert_allclose(half, expected, rtol=0.01)
    assert max(chart.lines[1].x) == 90000


def test_the_page_has_the_curve_once_and_one_legend_of_each_line(tmp_path: Path):
    ranking = make_curve(tmp_path / "x", [0.1, 0.2, 0.5, 1.0])
    write_sweep_page(ranking, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("twice the data (90,000 training images)") == 1
    assert page.count("</svg>95 % interval of the power law</span>") == 1


@pytest.mark.parametrize("change", [{}, {"val": {"acc": 0.5}}, {"val": None}, {"val": {"acc": "x", "num_images": 1}}])
def test_too_few_or_unreadable_points_are_one_line(tmp_path: Path, change: dict):
    fractions = [0.1, 0.2, 0.5, 1.0] if change else [0.1, 0.2, 0.5]
    ranking = make_curve(tmp_path / "x", fractions)
    if change:
        file = tmp_path / "x" / "3" / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    needed = "no learning curve: it needs 4 numbers of training images with a val accuracy, and there are 3; "
    assert learning_curve(ranking) == ([], f"{needed}type e.g. data.train_fraction=0.1,0.2,0.5,1.0")


def test_another_sweep_has_no_learning_curve(tmp_path: Path):
    assert learning_curve(make_curve(tmp_path / "x", [0.1, 0.2, 0.5, 1.0], key="optimizer.lr")) == ([], "")
