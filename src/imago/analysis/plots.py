"""Figures as PNG files, readable on a white page. matplotlib is imported only when one is drawn."""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.analysis.evaluation import Evaluation, load_image, saved_images
from imago.analysis.fonts import lend_fonts
from imago.statistics.calibration import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_MAX_NAME_CHARS = 22  # a longer class name is cut: it would take the image's place
_MAX_NUMBERED = 30  # classes: above this the counts no longer fit into their cells
_COLUMNS = 5  # of images
_MAX_NAMED = 100  # classes: above this only some of them are named


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str) -> "Figure":
    """Draw a confusion matrix: each row shaded by its share, so that rare classes show as clearly as common ones.

    Args:
        confusion: counts (K, K), true classes in rows.
        class_names: K names.
        title: above the image.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    num_classes = len(class_names)
    cell_inch = _cell_inch(num_classes)
    side = num_classes * cell_inch
    figure = Figure(figsize=(side + 3.4, side + 2.8), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    count = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, count, out=np.zeros(confusion.shape), where=count > 0)
    # A root, because the mistakes are what one looks for: 4 % of a row already shows as a fifth of the full shade.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("share of the true class", fontsize=9)
    _name_axes(axes, class_names, font_size=min(10, 72 * cell_inch * 0.72))
    axes.set_title(title, fontsize=max(11, side), parse_math=False)
    if num_classes <= _MAX_NUMBERED:
        _write_counts(axes, confusion, shares, cell_inch)
    lend_fonts(figure)
    return figure


def save_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, path: Path) -> None:
    """Write what `draw_confusion` draws as a PNG file."""
    # Tight, since long names of classes stand outside; it costs drawing everything twice.
    save_figure(draw_confusion(confusion, class_names, title), path, bbox_inches="tight", pad_inches=0.15)


def save_figure(figure: "Figure", path: Path, **settings: Any) -> None:
    """Write a figure as a PNG file; `settings` are those of matplotlib's `savefig`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for a sign that no font has
        figure.savefig(path, format="png", **settings)


def draw_reliability(diagram: Reliability, title: str) -> "Figure":
    """Draw how often a network is right against how sure it is, and below it how many images each bar stands for.

    Args:
        diagram: of `reliability`.
        title: above the image.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), dpi=_DPI, facecolor="white", layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    width = diagram.high - diagram.low
    axes.bar(diagram.low, diagram.accuracy, width, align="edge", color="#7aa6d8", edgecolor="white")
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="as sure as right")
    axes.plot(diagram.confidence, diagram.accuracy, "o", color="#1f4e8c", markersize=4, label="this network")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    axes.set_title(f"{title}\nECE {diagram.ece:.2%}", fontsize=11, parse_math=False)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    counts.bar(diagram.low, diagram.count, width, align="edge", color="0.7", edgecolor="white")
    counts.set(xlabel="probability of the predicted class", ylabel="images")
    return figure


def draw_mistakes(evaluation: Evaluation, limit: int = 25, saved: Mapping[int, np.ndarray] | None = None) -> "Figure":
    """Draw the images of the mistakes that the network was surest of, under what it took them for.

    Args:
        evaluation: of `load_evaluation`.
        limit: of images, at least 1.
        saved: images that are no files, uint8 (H, W, 3) by row; None reads those beside the predictions.

    Raises:
        DataError: if `mistakes.npz` beside the predictions is damaged.
    """
    from matplotlib.figure import Figure

    saved = saved_images(evaluation) if saved is None else saved
    rows = evaluation.worst_mistakes(limit).tolist()
    num_rows = max(1, math.ceil(len(rows) / _COLUMNS))
    figure = Figure(figsize=(2 * _COLUMNS, 2.4 * num_rows), dpi=_DPI, facecolor="white", layout="constrained")
    places = figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel()
    for axes in places:
        axes.set_axis_off()
    for axes, row in zip(places, rows, strict=False):
        pixels, why = load_image(evaluation, row, saved)
        if pixels is None:
            axes.text(0.5, 0.5, textwrap.fill(why, 28), ha="center", va="center", fontsize=6, parse_math=False)
        else:
            axes.imshow(pixels)
        taken, true = evaluation.class_names[evaluation.predicted[row]], evaluation.class_names[evaluation.labels[row]]
        title = f"{_shortened(taken)} {evaluation.probability[row]:.0%}\nin truth {_shortened(true)}"
        axes.set_title(title, fontsize=8, parse_math=False)
    lend_fonts(figure)
    return figure


def draw_explanation(image: np.ndarray, heat: np.ndarray, title: str) -> "Figure":
    """Draw an image, and beside it the same image under what speaks for a class.

    Args:
        image: uint8 (H, W, 3).
        heat: (H, W), in [0, 1].
        title: above both.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.3), dpi=_DPI, facecolor="white", layout="constrained")
    plain, covered = figure.subplots(1, 2)
    plain.imshow(image)
    covered.imshow(image)
    # Where nothing speaks for the class the image stays as it is; a map that is everywhere half opaque would hide it.
    covered.imshow(heat, cmap="turbo", vmin=0, vmax=1, alpha=0.65 * np.sqrt(heat))
    for axes in (plain, covered):
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11, parse_math=False)
    lend_fonts(figure)
    return figure


def _cell_inch(num_classes: int) -> float:
    if num_classes <= _MAX_NUMBERED:
        return max(0.42, min(0.9, 4.5 / num_classes))
    return 0.17 if num_classes <= _MAX_NAMED else 17 / num_classes


def _name_axes(axes: "Axes", class_names: Sequence[str], font_size: float) -> None:
    step = math.ceil(len(class_names) / _MAX_NAMED)
    places = range(0, len(class_names), step)
    names = [_shortened(class_names[place]) for place in places]
    # `parse_math` off: a class may be called "under $5".
    axes.set_xticks(places, names, fontsize=max(font_size, 6), rotation=90, parse_math=False)
    axes.set_yticks(places, names, fontsize=max(font_size, 6), parse_math=False)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[: _MAX_NAME_CHARS - 1]}…"


def _write_counts(axes: "Axes", confusion: np.ndarray, shares: np.ndarray, cell_inch: float) -> None:
    num_digits = len(str(confusion.max()))
    font_size = min(9.0, 72 * cell_inch * 0.8 / (0.62 * num_digits))  # a digit is 0.62 of the font size wide
    for (row, column), count in np.ndenumerate(confusion):
        if count:  # the eye finds mistakes faster without a field of zeros
            color = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=font_size, color=color)
