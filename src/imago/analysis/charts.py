"""Draw line charts as SVG for a page; the style sheet of the page has the colors, for light and dark mode."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

# SVG user units; the page scales the chart. At a width of 360 px the text is still 11 px high.
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 12, 210  # ends of the axes
# Points drawn per line: more are not visible in 340 px, and the page would grow to megabytes.
_MAX_POINTS = 500
_MAX_MARKED = 40  # points of a line with markers: on more, they would hide the line; our own choice
_PARALLEL_WIDTH, _PARALLEL_MARGIN = 800, 70  # of parallel axes; the margin leaves space for the names
_LOG_RATIO = 50  # of the largest to the smallest number on a parallel axis with a logarithmic scale; our own choice
_EXCLUDED_PREFIXES = ("epoch", "test/")  # names of metrics that have no curve


class Line(NamedTuple):
    """One line of a chart; `x` ascends, and `style` is the number of a line style of the page, 1 to 4."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int


class Chart(NamedTuple):
    """A chart as SVG, with its title, the lines in its legend, and a note, which may be empty."""

    title: str
    svg: str
    lines: Sequence[Line]
    note: str


def curve_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the metrics of one chart: train/loss, train/loss_step and val/loss are all `loss`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(_EXCLUDED_PREFIXES):
            groups.setdefault(name.rpartition("/")[2].removesuffix("_step"), []).append(name)
    return {title: sorted(group) for title, group in groups.items()}


def line_charts(
    groups: Mapping[str, Sequence[Line]], x_label: str, limits: tuple[float, float] | None = None
) -> list[Chart]:
    """Draw one chart for each group of lines with a finite point.

    Args:
        groups: lines by the title of their chart, which is also read by screen readers.
        x_label: the text below the horizontal axis of each chart.
        limits: the ends of both axes; those of the points if None.
    """
    charts = []
    for title, lines in groups.items():
        drawn = [line for line in map(_finite_points, lines) if line.x]
        if drawn:
            num_not_finite = sum(len(line.x) for line in lines) - sum(len(line.x) for line in drawn)
            note = f"{num_not_finite} NaN or infinite values are not drawn" if num_not_finite else ""
            charts.append(Chart(title, _chart_svg(title, drawn, x_label, limits), drawn, note))
    return charts


class _Axis(NamedTuple):
    ticks: Sequence[float]
    start: float
    end: float

    def positions(self, values: Sequence[float]) -> list[float]:
        scale = (self.end - self.start) / (self.ticks[-1] - self.ticks[0])
        return [self.start + (value - self.ticks[0]) * scale for value in values]


def _axis(values: Sequence[float], limits: tuple[float, float] | None, start: float, end: float) -> _Axis:
    """Return an axis that ends at round numbers, so that no line is drawn along the frame."""
    low, high = limits or (min(values), max(values))
    # A constant line gets 10 % of its value on each side, or 0.5 if it is 0.
    margin = 0 if low < high else abs(low) / 10 or 0.5
    # About five labels fit without overlap; our own choice.
    return _Axis(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low - margin, high + margin), start, end)


def _finite_points(line: Line) -> Line:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return line._replace(x=[x for x, _ in points], y=[y for _, y in points])


def _chart_svg(title: str, lines: Sequence[Line], x_label: str, limits: tuple[float, float] | None) -> str:
    """Return one chart as SVG; screen readers get the title and the first and last value of each line."""
    x_axis = _axis([x for line in lines for x in line.x], limits, _LEFT, _RIGHT)
    y_axis = _axis([y for line in lines for y in line.y], limits, _BOTTOM, _TOP)
    changes = (f"{line.name} goes from {_number_text(line.y[0])} to {_number_text(line.y[-1])}" for line in lines)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(". ".join((title, *changes)))}">'
        f"<title>{escape(title)}</title>{_grid(x_axis, y_axis)}"
        f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 33}" text-anchor="middle">{escape(x_label)}</text>'
        f"{''.join(_path(line, x_axis, y_axis) for line in lines)}</svg>"
    )


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    elements = []
    for value, y in zip(y_axis.ticks, y_axis.positions(y_axis.ticks), strict=True):
        elements.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        elements.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number_text(value)}</text>')
    for value, x in zip(x_axis.ticks, x_axis.positions(x_axis.ticks), strict=True):
        elements.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        elements.append(f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{_number_text(value)}</text>')
    return "".join([*elements, f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'])


def _path(line: Line, x_axis: _Axis, y_axis: _Axis) -> str:
    shown = np.unique(np.linspace(0, len(line.x) - 1, _MAX_POINTS).astype(int)).tolist()
    x, y = [line.x[index] for index in shown], [line.y[index] for index in shown]
    positions = [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(x_axis.positions(x), y_axis.positions(y), strict=True)]
    marks = [
        f'<circle class="mark line{line.style}" cx="{cx}" cy="{cy}" r="3">'
        f"<title>{escape(line.name)} {_number_text(y[number])} at {_number_text(x[number])}</title></circle>"
        for number, (cx, cy) in enumerate(positions if len(positions) <= _MAX_MARKED else [])
    ]
    path = "L".join(map(" ".join, positions))
    return f'<path class="line line{line.style}" d="M{path}"/>{"".join(marks)}'


def _number_text(value: float) -> str:
    digits = ".7g" if 1e5 <= abs(value) < 1e7 else ".5g"  # 100000 instead of 1e+05
    return f"{0.0 if abs(value) < 1e-12 else value:{digits}}"  # ticks may miss 0 by a rounding error


def numbers_or_none(values: Sequence[str | None]) -> list[float] | None:
    """Return the values as numbers; None if one of them is a word."""
    try:
        return [float(value) for value in values if value is not None]
    except ValueError:
        return None


def parallel_chart(title: str, columns: Mapping[str, Sequence[str | None]]) -> Chart:
    """Draw one line for each row over parallel axes, the first row highlighted.

    Args:
        title: the title of the chart.
        columns: the values as typed by the name of their axis; None leaves a gap. Numbers of several magnitudes are
            drawn on a logarithmic scale, words in alphabetical order; a column of None only is left out.
    """
    columns = {name: values for name, values in columns.items() if {*values} != {None}}
    spacing = (_PARALLEL_WIDTH - 2 * _PARALLEL_MARGIN) / max(1, len(columns) - 1)
    positions, elements = [], []
    for index, (name, values) in enumerate(columns.items()):
        x = _PARALLEL_MARGIN + index * spacing
        heights, labels = _parallel_axis(values)
        positions.append([None if y is None else (x, y) for y in heights])
        elements.append(f'<path class="axis" d="M{x:.1f} {_TOP + 20}V{_BOTTOM}"/>')
        elements.append(f'<text x="{x:.1f}" y="{_BOTTOM + 24}" text-anchor="middle">{escape(name)}</text>')
        elements += [f'<text x="{x + 5:.1f}" y="{y + 4:.1f}">{escape(label)}</text>' for label, y in labels.items()]
    rows = list(zip(*positions, strict=True))
    lines = [_broken_path(points, 4) for points in rows[:0:-1]] + [_broken_path(points, 2) for points in rows[:1]]
    best = ", ".join(f"{name} {values[0]}" for name, values in columns.items() if values[0] is not None)
    svg = (
        f'<svg viewBox="0 0 {_PARALLEL_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}: {best}")}">'
        f"<title>{escape(title)}</title>{''.join(lines)}{''.join(elements)}</svg>"
    )
    return Chart(title, svg, [], f"best: {best}")


def _parallel_axis(values: Sequence[str | None]) -> tuple[list[float | None], dict[str, float]]:
    """Return the height of each value on its axis, and the labels with theirs."""
    known = [value for value in values if value is not None]
    numbers = numbers_or_none(known)
    if numbers is None:
        ranks = {word: float(index) for index, word in enumerate(sorted(set(known), reverse=True))}
        labels = list(ranks)
    else:
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_RATIO
        scaled = [math.log(number) for number in numbers] if is_log else numbers
        ranks = dict(zip(known, scaled, strict=True))
        labels = sorted({min(known, key=float), max(known, key=float)}, key=float)
    low, high = min(ranks.values()), max(ranks.values())
    top, scale = _TOP + 20, (_BOTTOM - _TOP - 20) / ((high - low) or 1.0)
    heights = {word: top + (high - rank) * scale for word, rank in ranks.items()}
    return [None if value is None else heights[value] for value in values], {word: heights[word] for word in labels}


def _broken_path(points: Sequence[tuple[float, float] | None], style: int) -> str:
    path, pen = "", "M"
    for point in points:
        path += "" if point is None else f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "M" if point is None else "L"
    return f'<path class="line line{style}" d="{path}"/>' if path else ""
