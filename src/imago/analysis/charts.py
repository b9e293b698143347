"""Draw line charts as SVG for a page; the style sheet of the page has the colors, for light and dark mode."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

# In the units of the drawing, which the page scales; at a width of 360 px letters are still 11 px high.
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 12, 210  # of the axes
_MAX_POINTS = 500  # of a line: more cannot be seen in 340 px, and the page would grow to megabytes
_MAX_MARKED = 40  # points of a line: on more, markers would hide the line
_NOT_CURVES = ("epoch", "test/")  # test results are single numbers


@dataclass(frozen=True)
class Line:
    """One line of a chart; points that are not finite are left out.

    Attributes:
        name: as it is logged.
        x: in ascending order.
        y: as many values.
        style: index of a line style of the page, 1 to 8.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, legend and note.

    Attributes:
        title: above the drawing.
        svg: markup.
        lines: entries of the legend.
        note: below the drawing, or empty.
    """

    title: str
    svg: str
    lines: Sequence[Line]
    note: str


def curve_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the metrics of one chart: train/loss, train/loss_step and val/loss are all `loss`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(_NOT_CURVES):
            groups.setdefault(name.rpartition("/")[2].removesuffix("_step"), []).append(name)
    return {title: sorted(group) for title, group in groups.items()}


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Chart | None:
    """Draw lines over a common axis; return None if there is no finite point.

    Args:
        title: also read by screen readers.
        lines: at most eight.
        x_label: below the axis.
        x_range: ends of the axis; those of the points if None.
        y_range: likewise.
    """
    drawn = [(line, points) for line in lines if (points := _finite(line))]
    if not drawn:
        return None
    x_values, y_values = zip(*(point for _, points in drawn for point in points), strict=True)
    x_axis = _Axis(*_limits(x_values, x_range), _LEFT, _RIGHT)
    low, high = _limits(y_values, y_range)
    first, second, *_ = ticks(low, high)
    step = second - first  # widened to the next ticks, so that no line is drawn along the frame
    y_axis = _Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, _BOTTOM, _TOP)
    parts = [*_grid(x_axis, y_axis, x_label), *(_path(line, points, x_axis, y_axis) for line, points in drawn)]
    changes = (f"{line.name} goes from {_number(p[0][1])} to {_number(p[-1][1])}" for line, p in drawn)
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(". ".join((title, *changes)))}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
    num_lost = sum(len(line.x) - len(points) for line, points in drawn)
    note = f"{num_lost} values that are not finite are not drawn" if num_lost else ""
    return Chart(title, svg, [line for line, _ in drawn], note)


def ticks(low: float, high: float, limit: int = 6) -> list[float]:
    """Return round numbers within [low, high], `low` < `high`, at distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / limit
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _limits(values: Sequence[float], ends: tuple[float, float] | None) -> tuple[float, float]:
    low, high = ends or (min(values), max(values))
    half = abs(low) / 10 or 0.5
    return (low, high) if low < high else (low - half, low + half)


def _finite(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str) -> list[str]:
    parts = []
    for value in ticks(y_axis.low, y_axis.high):
        y = y_axis.position(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in ticks(x_axis.low, x_axis.high, 5):
        x = x_axis.position(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    middle = (_LEFT + _RIGHT) / 2
    label = f'<text x="{middle}" y="{_BOTTOM + 33}" text-anchor="middle">{escape(x_label)}</text>'
    return [*parts, f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>', label]


def _path(line: Line, points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    stride = math.ceil(len(points) / _MAX_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    positions = [(f"{x_axis.position(x):.1f}", f"{y_axis.position(y):.1f}") for x, y in kept]
    path = f'<path class="line line{line.style}" d="M{"L".join(map(" ".join, positions))}"/>'
    if len(kept) > _MAX_MARKED:
        return path
    marks = (
        f'<circle class="mark line{line.style}" cx="{cx}" cy="{cy}" r="3">'
        f"<title>{escape(line.name)} {_number(y)} at {_number(x)}</title></circle>"
        for (x, y), (cx, cy) in zip(kept, positions, strict=True)
    )
    return path + "".join(marks)


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
