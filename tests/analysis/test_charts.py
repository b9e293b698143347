"""Line charts as SVG: positions, values that cannot be drawn, and text for screen readers."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from imago.analysis.charts import Chart, Line, curve_groups, line_charts


def drawn(x, y, limits: tuple[float, float] | None = None, name: str = "a") -> tuple[Chart, ET.Element]:
    (chart,) = line_charts({"loss": [Line(name, x, y, 1)]}, "step", limits)
    return chart, ET.fromstring(chart.svg)


def points(svg: ET.Element) -> list[tuple[float, float]]:
    (path,) = [element for element in svg.iter("path") if element.get("class") == "line line1"]
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_points_are_drawn_at_their_values():
    _, svg = drawn([0, 0.5, 1], [0, 1, 0.5], limits=(0, 1))
    (left, bottom), (middle, top), (right, half) = points(svg)
    assert (middle, half) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert top < bottom
    assert left < right
    texts = [text.text for text in svg.iter("text")]
    assert texts == [*2 * ["0", "0.2", "0.4", "0.6", "0.8", "1"], "step"]


def test_values_that_are_not_finite_are_left_out_and_counted():
    chart, svg = drawn([0, 1, 2, 3], [1, math.nan, math.inf, 2])
    assert len(points(svg)) == 2
    assert chart.note == "2 NaN or infinite values are not drawn"


def test_without_finite_values_there_is_no_chart():
    assert line_charts({"loss": [Line("a", [1], [math.nan], 1)], "acc": [Line("a", [], [], 1)]}, "step") == []


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-2.0], [1e-30, 1e-30], [1e30, -1e30], [0.3, 0.3 + 1e-9]])
def test_constant_and_extreme_values_can_be_drawn(values: list[float]):
    _, svg = drawn(range(len(values)), values)
    assert all(0 <= x <= 400 and 0 <= y <= 250 for x, y in points(svg))
    assert 5 <= len(list(svg.iter("text"))) <= 15


def test_a_long_line_is_thinned_and_keeps_its_ends():
    _, svg = drawn(range(20_000), range(20_000))
    _, whole = drawn([0, 19_999], [0, 19_999])
    thinned = points(svg)
    assert len(thinned) <= 500
    assert (thinned[0], thinned[-1]) == tuple(points(whole))


def test_a_chart_has_a_description_for_screen_readers_and_names_are_escaped():
    _, svg = drawn([1, 2], [0.25, 0.75], name="<val/acc>")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "loss. <val/acc> goes from 0.25 to 0.75"


def test_train_and_val_values_of_a_metric_are_one_chart():
    names = ["train/loss_step", "train/loss", "val/loss", "lr", "val/acc", "epoch", "test/acc", "test/num_images"]
    groups = curve_groups(names)
    assert groups == {"loss": ["train/loss", "train/loss_step", "val/loss"], "lr": ["lr"], "acc": ["val/acc"]}


def test_ticks_that_are_close_together_have_different_labels():
    chart, _ = drawn([0, 1], [1.0153, 1.0171])
    labels = re.findall(r'text-anchor="end">([^<]+)<', chart.svg)
    assert len(labels) == len(set(labels)) > 2
