"""Line charts as SVG: ticks, positions, values that cannot be drawn, and text for screen readers."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from imago.analysis.charts import Chart, Line, curve_groups, line_chart, ticks

NAMESPACE = "{http://www.w3.org/2000/svg}"


def drawn(lines: list[Line], **ranges) -> tuple[Chart, ET.Element]:
    chart = line_chart("loss", lines, "step", **ranges)
    assert chart is not None
    return chart, ET.fromstring(chart.svg)


def points(svg: ET.Element, style: int) -> list[tuple[float, float]]:
    (path,) = [part for part in svg.iter("path") if part.get("class") == f"line line{style}"]
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.3, 2.1, [0.5, 1, 1.5, 2]), (-5, 5, [-4, -2, 0, 2, 4]), (0, 1e-5, None)],
)
def test_ticks_are_round_numbers_inside(low: float, high: float, expected: list[float] | None):
    found = ticks(low, high)
    assert found == pytest.approx(expected) if expected else len(found) > 2


@pytest.mark.parametrize("span", [1e-9, 0.003, 0.7, 1.0, 12, 99, 1e6, 3e30])
def test_there_are_always_a_few_ticks(span: float):
    assert 2 <= len(ticks(0.1 * span, 1.1 * span)) <= 7


def test_points_are_drawn_at_their_values():
    _, svg = drawn([Line("a", [0, 5, 10], [0, 1, 0.5], 1)], x_range=(0, 10), y_range=(0, 1))
    (left, bottom), (middle, top), (right, half) = points(svg, 1)
    assert (middle, half) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert top < bottom
    assert left < right


def test_values_that_are_not_finite_are_left_out_and_counted():
    chart, svg = drawn([Line("a", [0, 1, 2, 3], [1, math.nan, math.inf, 2], 1)])
    assert len(points(svg, 1)) == 2
    assert chart.note == "2 values that are not finite are not drawn"


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_without_finite_values_there_is_no_chart(values: list[float]):
    assert line_chart("loss", [Line("a", range(len(values)), values, 1)], "step") is None


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-2.0], [1e-30, 1e-30], [1e30, -1e30]])
def test_constant_and_extreme_values_can_be_drawn(values: list[float]):
    _, svg = drawn([Line("a", range(len(values)), values, 1)])
    assert all(0 <= x <= 400 and 0 <= y <= 250 for x, y in points(svg, 1))


def test_a_long_line_is_thinned_and_keeps_its_ends():
    _, svg = drawn([Line("a", range(100_000), range(100_000), 1)])
    found = points(svg, 1)
    assert len(found) <= 501
    (_, whole) = drawn([Line("a", [0, 99_999], [0, 99_999], 1)])
    assert (found[0], found[-1]) == tuple(points(whole, 1))


def test_a_chart_has_a_description_for_screen_readers_and_names_are_escaped():
    _, svg = drawn([Line("<val/acc>", [1, 2], [0.25, 0.75], 1)])
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "loss. <val/acc> goes from 0.25 to 0.75"


def test_train_and_val_values_of_a_metric_are_one_chart():
    names = ["train/loss_step", "train/loss", "val/loss", "lr", "val/acc", "epoch", "test/acc", "test/num_images"]
    groups = curve_groups(names)
    assert groups == {"loss": ["train/loss", "train/loss_step", "val/loss"], "lr": ["lr"], "acc": ["val/acc"]}
