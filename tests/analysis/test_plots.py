"""Figures: confusion matrix, mistakes, reliability and explanation, also with class names in any script."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from matplotlib import font_manager
from PIL import Image
from run_folders import make_evaluation

from imago.analysis.evaluation import load_evaluation
from imago.analysis.plots import (
    plot_confusion,
    plot_explanation,
    plot_mistakes,
    plot_reliability,
    plot_robustness,
    plot_scores,
    save_confusion,
)
from imago.statistics.calibration import reliability

FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"


def some_confusion(num_classes: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(2 + 2000 / num_classes * np.eye(num_classes))


@pytest.mark.parametrize("num_classes", [2, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (30, 100))])
def test_names_and_counts_of_the_confusion_image_do_not_overlap(num_classes: int):
    names = [f"a class called {number}" for number in range(num_classes)]
    figure = plot_confusion(some_confusion(num_classes), names, "title")
    figure.draw_without_rendering()  # lays it out
    axes = figure.axes[0]
    for labels, side in ((axes.get_xticklabels(), 0), (axes.get_yticklabels(), 1)):
        boxes = [label.get_window_extent().get_points()[:, side] for label in labels]
        ends = sorted((low, high) for low, high in boxes)
        assert all(high <= low + 1 for (_, high), (low, _) in zip(ends, ends[1:], strict=False))
        assert min(label.get_fontsize() for label in labels) >= 6
    cell = abs(axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0])
    counts = sorted(axes.texts, key=lambda text: len(text.get_text()))
    assert bool(counts) == (num_classes <= 30)
    assert all(text.get_window_extent().width <= cell for text in counts[-1:])  # the longest


def test_the_confusion_image_is_light_and_has_any_class_name(tmp_path):
    names = ["under $5 or $6", "_hidden", "日本", "x" * 80]
    save_confusion(np.diag([3, 0, 2, 1]), names, "50 % of $x$", tmp_path / "confusion.png")
    image = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB"))
    assert (image[0, 0] == 255).all()
    assert (image > 240).mean() > 0.5
    assert 300 < min(image.shape[:2]) < max(image.shape[:2]) < 1500


def test_mistakes_are_drawn_by_probability_and_a_missing_file_is_named(tmp_path: Path):
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "0.png")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"root": str(tmp_path)}}))
    images = [str(tmp_path / f"{number}.png") for number in range(3)]
    make_evaluation(tmp_path, [0, 0, 1], [1, 0, 2], [0.6, 0.9, 0.7], images)
    figure = plot_mistakes(load_evaluation(tmp_path), limit=4)
    first, second, *rest = figure.axes
    assert [first.get_title(), second.get_title()] == ["cat 70%\ntrue: bee", "bee 60%\ntrue: ant"]
    assert "cannot be read" in " ".join(first.texts[0].get_text().split())
    assert (np.asarray(second.images[0].get_array()) == (10, 20, 30)).all()
    assert not any(axes.images or axes.texts or axes.get_title() for axes in rest)


def test_images_that_are_not_files_are_passed_as_arrays(tmp_path: Path):
    make_evaluation(tmp_path, [0, 0], [1, 0], images=["val/0", "val/1"])
    figure = plot_mistakes(load_evaluation(tmp_path), saved={0: np.full((4, 4, 3), 9, np.uint8)})
    assert (np.asarray(figure.axes[0].images[0].get_array()) == 9).all()


def test_the_reliability_diagram_has_a_bar_for_each_bin():
    diagram = reliability(np.array([0.55, 0.6, 0.9, 1.0, 1.0]), np.array([True, False, True, True, False]))
    figure = plot_reliability(diagram, "cats under $5")
    bars, counts = figure.axes
    assert [bar.get_height() for bar in bars.patches] == diagram.accuracy.tolist()
    assert [bar.get_x() for bar in bars.patches] == diagram.low.tolist()
    assert [bar.get_height() for bar in counts.patches] == diagram.num_images.tolist()
    assert bars.get_title() == f"cats under $5\nECE {diagram.ece:.2%}"


def test_the_distributions_of_scores_have_equal_areas_and_the_cut_off_between_them():
    random = np.random.default_rng(0)
    known, unknown = random.normal(0.4, 0.1, 500), random.normal(0, 0.1, 50)
    (axes,) = plot_scores(known, unknown, "under $5").axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    halves = bars[: len(bars) // 2], bars[len(bars) // 2 :]
    for half, scores in zip(halves, (known, unknown), strict=True):
        centers, heights = np.array(half).T
        assert heights.sum() == pytest.approx(100)
        assert centers @ heights / 100 == pytest.approx(scores.mean(), abs=0.02)
    assert [line.get_xdata()[0] for line in axes.lines] == [0]


def test_an_explanation_is_transparent_where_there_is_no_evidence():
    image, heatmap = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    heatmap[0, 0] = 1
    plain, overlay = plot_explanation(image, heatmap, "ants 93.1%").axes
    assert (np.asarray(plain.images[0].get_array()) == 100).all()
    opacity = overlay.images[1].get_alpha()
    assert opacity[0, 0] > 0.5
    assert opacity[1:, 1:].max() == 0


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the list of installed fonts by an empty one, which a test fills."""
    files: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    return files


def letter_in(has: str, lacks: str) -> str:
    """Return a letter that one of matplotlib's fonts has and the other lacks."""
    with_letter, without = (font_manager.get_font(str(FONTS / f"{name}.ttf")) for name in (has, lacks))
    return next(
        chr(code) for code in with_letter.get_charmap() if chr(code).isalpha() and not without.get_char_index(code)
    )


def families(name: str) -> set[tuple[str, ...]]:
    figure = plot_confusion(np.eye(2, dtype=int), [name, "plain"], "title")
    return {tuple(label.get_fontfamily()) for label in figure.axes[0].get_yticklabels()}


def test_a_character_that_the_font_lacks_comes_from_an_installed_font(installed: list[str], tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed += [str(tmp_path / "broken.ttf"), str(FONTS / "cmr10.ttf"), str(FONTS / "STIXGeneral.ttf")]
    letter = letter_in("STIXGeneral", "DejaVuSans")
    assert families(letter) == {("sans-serif", "STIXGeneral")}


def test_the_font_stays_if_no_character_is_missing_or_no_font_has_it(installed: list[str]):
    assert families("Ωμέγα") == {("sans-serif",)}
    assert families("\U000f1234蜂") == {("sans-serif",)}


def test_each_corruption_has_its_accuracy_and_calibration_error_by_severity():
    scores = {
        "severity": [1, 2],
        "acc": [0.6, 0.5],
        "acc_interval": [[0.5, 0.7], [0.4, 0.6]],
        "calibration_error": [0.1, 0.2],
    }
    single = {"severity": [5], "acc": [0.3], "acc_interval": [[0.2, 0.4]], "calibration_error": [0.4]}
    corruptions = dict.fromkeys(("fog", "snow", "frost", "contrast", "pixelate"), scores) | {"zoom_blur": single}
    figure = plot_robustness({"clean_acc": 0.8, "corruptions": corruptions})
    assert [axes.get_title() for axes in figure.axes] == ["fog", "snow", "frost", "contrast", "pixelate", "zoom blur"]
    clean, accuracy, error = figure.axes[0].lines
    assert list(clean.get_ydata()) == [80, 80]
    assert accuracy.get_ydata().tolist() == [60, 50]
    assert error.get_ydata().tolist() == [10, 20]
    assert figure.axes[5].lines[1].get_ydata().tolist() == [30]
    assert [text.get_text() for text in figure.legends[0].get_texts()][0] == "accuracy without corruption, %"
