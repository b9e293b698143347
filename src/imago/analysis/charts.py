"""Line charts as SVG for a page: colors come from its style sheet, so they suit light and dark; no library needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

# The drawing's own units; the page scales it, and at 360 px width letters are still 11 px high.
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_MOST_POINTS = 500  # of a line: more cannot be told apart in 340 px, and the page would grow to megabytes
_MOST_MARKED = 40  # points of a line: a mark on each shows where values are, on more it only hides the line


@dataclass(frozen=True)
class Line:
    """One line of a chart; points that are not finite are left out.

    Attributes:
        name: as it is logged.
        x: in rising order.
        y: as many.
        style: which of the page's eight line styles.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int


@dataclass(frozen=True)
class Chart:
    """A drawing with what stands around it.

    Attributes:
        title: what is drawn.
        svg: markup.
        lines: what the legend tells.
        note: below it, or empty.
    """

    title: str
    svg: str
    lines: Sequence[Line]
    note: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Chart | None:
    """Draw lines over a common axis; None if there is no finite point.

    Args:
        title: read out in place of the image too.
        lines: at most eight.
        x_label: below the axis.
        x_range: ends of the axis; those of the points if left out.
        y_range: likewise.
    """
    drawn = [(line, points) for line in lines if (points := _finite(line))]
    if not drawn:
        return None
    every = [point for _, points in drawn for point in points]
    x_axis = _Axis.over([x for x, _ in every], x_range, _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis.over([y for _, y in every], y_range, _HEIGHT - _BOTTOM, _TOP).rounded()
    parts = [*_grid(x_axis, y_axis, x_label), *(_draw(line, points, x_axis, y_axis) for line, points in drawn)]
    told = f"{title}. " + ". ".join(_in_words(line, points) for line, points in drawn)
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
    num_lost = sum(len(line.x) - len(points) for line, points in drawn)
    note = f"{num_lost} values that are not finite are not drawn" if num_lost else ""
    return Chart(title, svg, [line for line, _ in drawn], note)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Give round numbers within [low, high], `low` < `high`, at equal distances: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], ends: tuple[float, float] | None, start: float, end: float) -> "_Axis":
        low, high = ends or (min(values), max(values))
        if low == high:
            half = abs(low) / 10 or 0.5
            low, high = low - half, high + half
        return cls(low, high, start, end)

    def rounded(self) -> "_Axis":
        """Widen to the next ticks, so that no line runs along the frame."""
        marks = ticks(self.low, self.high)
        step = marks[1] - marks[0]
        low, high = math.floor(self.low / step + 1e-9) * step, math.ceil(self.high / step - 1e-9) * step
        return replace(self, low=low, high=high)

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _finite(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str) -> list[str]:
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    parts = []
    for value in ticks(y_axis.low, y_axis.high):
        y = y_axis.place(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in ticks(x_axis.low, x_axis.high, 5):
        x = x_axis.place(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(value)}</text>')
    middle = (left + right) / 2
    label = f'<text x="{middle}" y="{bottom + 33}" text-anchor="middle">{escape(x_label)}</text>'
    return [*parts, f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>', label]


def _draw(line: Line, points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    every = math.ceil(len(points) / _MOST_POINTS)
    kept = [*points[:-1:every], points[-1]]
    places = [f"{x_axis.place(x):.1f} {y_axis.place(y):.1f}" for x, y in kept]
    path = f'<path class="line line{line.style}" d="M{"L".join(places)}"/>'
    if len(kept) > _MOST_MARKED:
        return path
    marks = (
        f'<circle class="mark line{line.style}" cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3">'
        f"<title>{escape(line.name)} {_number(y)} at {_number(x)}</title></circle>"
        for x, y in kept
    )
    return path + "".join(marks)


def _in_words(line: Line, points: Sequence[tuple[float, float]]) -> str:
    return f"{line.name} goes from {_number(points[0][1])} to {_number(points[-1][1])}"


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
