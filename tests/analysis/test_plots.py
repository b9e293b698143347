"""Figures: mistakes under what they were taken for, how sure and how right, and where a network looked."""

from pathlib import Path

import numpy as np
from PIL import Image
from run_folders import make_evaluation

from imago.analysis.evaluation import load_evaluation
from imago.analysis.plots import draw_explanation, draw_mistakes, draw_reliability, save_figure
from imago.statistics.calibration import reliability


def test_mistakes_are_drawn_surest_first_and_what_is_gone_says_so(tmp_path: Path):
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "0.png")
    images = [str(tmp_path / f"{number}.png") for number in range(3)]
    make_evaluation(tmp_path, [0, 0, 1], [1, 0, 2], [0.6, 0.9, 0.7], images)
    figure = draw_mistakes(load_evaluation(tmp_path), limit=4)
    first, second, *rest = figure.axes
    assert [first.get_title(), second.get_title()] == ["cat 70%\nin truth bee", "bee 60%\nin truth ant"]
    assert "cannot be read" in " ".join(first.texts[0].get_text().split())
    assert (np.asarray(second.images[0].get_array()) == (10, 20, 30)).all()
    assert not any(axes.images or axes.texts or axes.get_title() for axes in rest)


def test_a_network_without_mistakes_gives_an_empty_figure(tmp_path: Path):
    make_evaluation(tmp_path, [0, 1], [0, 1])
    figure = draw_mistakes(load_evaluation(tmp_path))
    assert not any(axes.images for axes in figure.axes)
    figure.draw_without_rendering()


def test_images_that_are_no_files_are_handed_over(tmp_path: Path):
    make_evaluation(tmp_path, [0, 0], [1, 0], images=["val/0", "val/1"])
    figure = draw_mistakes(load_evaluation(tmp_path), saved={0: np.full((4, 4, 3), 9, np.uint8)})
    assert (np.asarray(figure.axes[0].images[0].get_array()) == 9).all()


def test_the_reliability_diagram_has_a_bar_a_bin_and_a_point_on_each(tmp_path: Path):
    diagram = reliability(np.array([0.55, 0.6, 0.9, 1.0, 1.0]), np.array([True, False, True, True, False]))
    figure = draw_reliability(diagram, "cats under $5")
    bars, counts = figure.axes
    assert [bar.get_height() for bar in bars.patches] == diagram.accuracy.tolist()
    assert [bar.get_x() for bar in bars.patches] == diagram.low.tolist()
    assert [bar.get_height() for bar in counts.patches] == diagram.count.tolist()
    assert bars.get_title() == f"cats under $5\nECE {diagram.ece:.2%}"
    save_figure(figure, tmp_path / "r.png")
    assert Image.open(tmp_path / "r.png").size > (400, 400)


def test_an_explanation_leaves_the_image_bare_where_nothing_speaks_for_the_class():
    image, heat = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    plain, covered = draw_explanation(image, heat, "ants 93.1%").axes
    assert (np.asarray(plain.images[0].get_array()) == 100).all()
    opacity = covered.images[1].get_alpha()
    assert opacity[0, 0] > 0.5
    assert opacity[1:, 1:].max() == 0
