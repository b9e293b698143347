"""Figures for notebooks: mistakes under what they were taken for."""

from pathlib import Path

import numpy as np
from PIL import Image
from run_folders import make_evaluation

from imago.analysis.evaluation import load_evaluation
from imago.analysis.plots import draw_mistakes


def test_mistakes_are_drawn_surest_first_and_what_is_gone_says_so(tmp_path: Path):
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "0.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(3)]
    make_evaluation(tmp_path, [0, 0, 1], [1, 0, 2], [0.6, 0.9, 0.7], pictures)
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
