"""Draw figures for PNG files and notebooks. matplotlib is imported only when a figure is drawn."""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imago.analysis.evaluation import Evaluation, load_image, saved_images
from imago.files import atomic_write
from imago.statistics.calibration import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sizes are our own choice; tests check that names and counts do not overlap for 2 to 100 classes.
_MAX_NAME_CHARS = 22  # longer class names are shortened, so that the matrix keeps its space
_MAX_CLASSES_WITH_COUNTS = 30  # classes: with more, the counts do not fit into their cells
_NUM_COLUMNS = 5  # images in a row
_MAX_LABELS = 100  # classes: with more, only some of them are named
_MAX_SIDE_INCH = 17  # largest side of the matrix: 1,870 px at 110 dpi
_DARK_SHARE = 0.35  # a cell with a larger share of its row is so dark that its count is white


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str) -> "Figure":
    """Draw a confusion matrix; the color is the share of the row, so that rare classes are as visible as frequent ones.

    `confusion` has counts (K, K), true classes in rows; `title` is one line, in which a $ is printed as it is.
    """
    from matplotlib.colors import PowerNorm

    num_classes = len(class_names)
    has_counts = num_classes <= _MAX_CLASSES_WITH_COUNTS
    # A cell of 0.42 inch has space for three digits of a readable size.
    cell_inch = max(0.42, min(0.9, 4.5 / num_classes)) if has_counts else _MAX_SIDE_INCH / max(num_classes, _MAX_LABELS)
    side_inch = num_classes * cell_inch
    figure = _new_figure(side_inch + 3.4, side_inch + 2.8)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root makes mistakes visible: 4 % of a row gets a fifth of the full color.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    color_bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    color_bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
    color_bar.set_label("share of the true class", fontsize=9)
    # 72 points are an inch; a line of text takes 0.72 of its cell, which leaves space between two names.
    _label_axes(axes, class_names, font_size=max(6, min(10, 72 * cell_inch * 0.72)))
    axes.set_title(title, fontsize=max(11, side_inch), parse_math=False)
    if has_counts:
        _write_counts(axes, confusion, shares, cell_inch)
    _set_fonts(figure)
    return figure


def save_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, path: Path) -> None:
    """Write the figure of `plot_confusion` as a PNG file."""
    # "tight" includes long class names outside the axes; it draws everything twice.
    save_figure(plot_confusion(confusion, class_names, title), path, bbox_inches="tight", pad_inches=0.15)


def save_figure(figure: "Figure", path: Path, **settings: Any) -> None:
    """Write a figure as a PNG file, atomically; `settings` are those of matplotlib's `savefig`."""
    with warnings.catch_warnings(), atomic_write(path, "wb") as file:
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such a character is drawn as a box
        figure.savefig(file, format="png", **settings)


def plot_reliability(diagram: Reliability, title: str) -> "Figure":
    """Draw accuracy over probability, and below it the number of images in each bin; the ECE is below the title."""
    figure = _new_figure(5, 5.6)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    width = diagram.high - diagram.low
    axes.bar(diagram.low, diagram.accuracy, width, align="edge", color="#7aa6d8", edgecolor="white")
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(diagram.probability, diagram.accuracy, "o", color="#1f4e8c", markersize=4, label="this network")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_title(f"{title}\nECE {diagram.ece:.2%}", fontsize=11, parse_math=False)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    counts.bar(diagram.low, diagram.num_images, width, align="edge", color="0.7", edgecolor="white")
    counts.set(xlabel="probability of the predicted class", ylabel="images")
    return figure


def plot_scores(known: np.ndarray, unknown: np.ndarray, title: str) -> "Figure":
    """Draw the distributions of the scores of known (N,) and unknown images (M,), negative ones are marked."""
    figure = _new_figure(6.5, 4)
    axes = figure.subplots()
    bins = np.histogram_bin_edges(np.concatenate([known, unknown]), 50).tolist()
    for scores, name, color in ((known, "known", "#1f4e8c"), (unknown, "unknown", "#d8742a")):
        shares, label = [100 / len(scores)] * len(scores), f"{name}, n = {len(scores):,}"
        axes.hist(scores, bins, weights=shares, alpha=0.6, color=color, label=label)
    axes.axvline(0, color="0.2", linestyle="--", linewidth=1, label="cut-off: lower scores are marked")
    axes.set(xlabel="cosine to the nearest class, less the cut-off", ylabel="% of the images")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.legend(edgecolor="white", fontsize=9)
    _set_fonts(figure)
    return figure


def plot_mistakes(evaluation: Evaluation, limit: int = 25, saved: Mapping[int, np.ndarray] | None = None) -> "Figure":
    """Draw the images of the mistakes with the highest probability, each with predicted and true class.

    Args:
        evaluation: from `load_evaluation`.
        limit: largest number of images, at least 1.
        saved: images that are not files, uint8 (H, W, 3) by index; None reads them from `mistakes.npz`.

    Raises:
        DataError: if `mistakes.npz` is damaged.
    """
    saved = saved_images(evaluation) if saved is None else saved
    names = [_shorten(name) for name in evaluation.class_names]
    indices = evaluation.worst_mistakes(limit).tolist()
    num_rows = max(1, math.ceil(len(indices) / _NUM_COLUMNS))
    figure = _new_figure(2 * _NUM_COLUMNS, 2.4 * num_rows)
    cells = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, index in zip(cells, indices, strict=False):
        pixels, reason = load_image(evaluation, index, saved)
        if pixels is None:
            axes.text(0.5, 0.5, textwrap.fill(reason, 28), ha="center", va="center", fontsize=6, parse_math=False)
        else:
            axes.imshow(pixels)
        predicted, true = names[evaluation.predicted[index]], names[evaluation.labels[index]]
        axes.set_title(f"{predicted} {evaluation.probability[index]:.0%}\ntrue: {true}", fontsize=8, parse_math=False)
    _set_fonts(figure)
    return figure


def plot_speed(
    names: Sequence[str],
    accuracy: np.ndarray,
    intervals: np.ndarray,
    latency_ms: np.ndarray,
    num_bytes: np.ndarray,
    title: str,
) -> "Figure":
    """Draw latency and accuracy of N files, one row for each, the fastest first.

    Args:
        names: N labels.
        accuracy: shares (N,).
        intervals: low and high end of each (N, 2).
        latency_ms: of one image (N,).
        num_bytes: sizes (N,).
        title: of the figure.
    """
    order = np.argsort(latency_ms)
    rows = np.arange(len(names))
    figure = _new_figure(9, 1.4 + 0.32 * len(names))
    speed, quality = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    bars = speed.barh(rows, latency_ms[order], color="#7aa6d8")
    texts = [f"{latency_ms[index]:.3g} ms, {num_bytes[index] / 1e6:.3g} MB" for index in order]
    speed.bar_label(bars, texts, padding=4, fontsize=9)
    speed.margins(x=0.4)
    speed.set(xlabel="latency of one image, ms (p50)")
    speed.set_yticks(rows, [names[index] for index in order], parse_math=False)
    speed.invert_yaxis()
    errors = 100 * np.abs(intervals.T - accuracy)[:, order]
    quality.errorbar(100 * accuracy[order], rows, xerr=errors, fmt="o", color="#1f4e8c", ecolor="0.6")
    quality.set(xlabel="accuracy, % (95 % interval)")
    quality.grid(axis="x", color="0.9")
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def plot_robustness(content: Mapping[str, Any]) -> "Figure":
    """Draw accuracy and calibration error over severity for each corruption in `content`, that of robustness.json."""
    corruptions = content["corruptions"].items()
    figure = _new_figure(2 * _NUM_COLUMNS, 1.7 * math.ceil(len(corruptions) / _NUM_COLUMNS) + 0.5)
    for number, (name, scores) in enumerate(corruptions, 1):
        axes = figure.add_subplot(math.ceil(len(corruptions) / _NUM_COLUMNS), _NUM_COLUMNS, number)
        acc, intervals, errors = (100 * np.array(scores[key]) for key in ("acc", "acc_interval", "calibration_error"))
        severities = scores["severity"]
        axes.axhline(
            100 * content["clean_acc"], color="0.4", linestyle="--", linewidth=1, label="accuracy without corruption, %"
        )
        axes.fill_between(severities, *intervals.T, color="#7aa6d8", alpha=0.4)
        axes.plot(severities, acc, "o-", color="#1f4e8c", markersize=3, label="accuracy by severity, %")
        axes.plot(severities, errors, "s-", color="#c9562b", markersize=3, label="calibration error, %")
        axes.set(ylim=(0, 100), xticks=severities, title=name.replace("_", " "))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def plot_explanation(image: np.ndarray, heatmap: np.ndarray, title: str) -> "Figure":
    """Draw an image, uint8 (H, W, 3), and next to it the same image with the heatmap on top.

    `heatmap` is the evidence for a class, (H, W), in [0, 1]; `title` is one line, in which a $ is printed as it is.
    """
    figure = _new_figure(6, 3.3)
    plain, overlay = figure.subplots(1, 2)
    for axes in (plain, overlay):
        axes.imshow(image)
        axes.set_axis_off()
    # Transparent where the heatmap is 0; a constant opacity would hide the image everywhere. With 0.65 it
    # stays visible even where the heatmap is 1; our own choice.
    overlay.imshow(heatmap, cmap="turbo", vmin=0, vmax=1, alpha=0.65 * np.sqrt(heatmap))
    figure.suptitle(title, fontsize=11, parse_math=False)
    _set_fonts(figure)
    return figure


def _new_figure(width_inch: float, height_inch: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inch, height_inch), dpi=110, facecolor="white", layout="constrained")


def _label_axes(axes: "Axes", class_names: Sequence[str], font_size: float) -> None:
    indices = range(0, len(class_names), math.ceil(len(class_names) / _MAX_LABELS))
    names = [_shorten(class_names[index]) for index in indices]
    # parse_math=False: a class may be called "under $5".
    axes.set_xticks(indices, names, fontsize=font_size, rotation=90, parse_math=False)
    axes.set_yticks(indices, names, fontsize=font_size, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[: _MAX_NAME_CHARS - 1]}…"


def _write_counts(axes: "Axes", confusion: np.ndarray, shares: np.ndarray, cell_inch: float) -> None:
    num_digits = len(str(confusion.max()))
    # In DejaVu Sans a digit is 0.62 of the font size wide; 0.8 of the cell leaves a margin.
    font_size = min(9.0, 72 * cell_inch * 0.8 / (0.62 * num_digits))
    for row, column in np.argwhere(confusion):  # zeros are left out, so that mistakes are easy to see
        color = "white" if shares[row, column] > _DARK_SHARE else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=font_size, color=color)


def _set_fonts(figure: "Figure") -> None:
    """Add installed fonts for characters that the default font lacks, e.g. Chinese or Hindi class names."""
    from matplotlib import font_manager, rcParams
    from matplotlib.text import Text

    texts, families = figure.findobj(Text), list(rcParams["font.family"])
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    characters = {ord(character) for text in texts for character in text.get_text() if character.isprintable()}
    missing = {character for character in characters if not default.get_char_index(character)}
    files = font_manager.findSystemFonts() if missing else []
    for file in sorted(files, key=lambda file: ("Sans" not in Path(file).stem, "Regular" not in Path(file).stem, file)):
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # FreeType cannot read it
            continue
        available = {character for character in missing if font.get_char_index(character)}
        if available and font.scalable:
            font_manager.fontManager.addfont(file)
            families.append(font_manager.FontProperties(fname=file).get_name())
            missing -= available
    for text in texts:
        text.set_fontfamily(families)
