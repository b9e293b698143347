"""The pages in a browser: nothing overflows, text is readable in light and dark mode, and nothing is fetched."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from run_folders import make_evaluation, make_run, make_sweep

from imago.analysis.comparison import compare_runs, write_comparison_page
from imago.analysis.ranking import rank_settings
from imago.analysis.run_page import write_run_page
from imago.analysis.sweep_page import write_sweep_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
NAMES = [f"a class with quite a long name {number}" for number in range(11)] + [
    "oneverylongwordwithoutanyblankinit" * 2
]

# Elements beyond the right edge, unless an ancestor scrolls.
STICKING_OUT = """() => [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, pre, .skip')
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""

# Texts with less contrast than WCAG 2.2 requires (1.4.3: 4.5 to 1) on their composited background.
HARD_TO_READ = """() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = e => { if (!e) return [255, 255, 255];
    const own = rgba(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(e.parentElement)) };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05) };
  const found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const style = getComputedStyle(e), inSvg = e.closest('svg');
    const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const isLine = e.matches('path.line');
    if (!(hasText && !e.closest('title, style')) && !isLine) continue;
    const color = rgba(isLine ? style.stroke : inSvg ? style.fill : style.color);
    const ratio = contrast(color.slice(0, 3), behind(e.closest('svg') || e));
    if (ratio < (isLine ? 3 : 4.5)) found.push(`${e.tagName}.${e.getAttribute('class')} ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)] }"""

# Texts of one chart that overlap.
OVERLAPPING = """() => [...document.querySelectorAll('figure > svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => p.left < q.right && q.left < p.right
    && p.top + 2 < q.bottom && q.top + 2 < p.bottom).map(([b]) => `${a} on ${b}`)) })"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write pages that are hard to fit: long names and paths, many classes, wide tables."""
    folder = tmp_path_factory.mktemp("a folder with a long name " + "x" * 60)
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 12, 400)
    images = [str(folder / "images" / f"{number}{'_long' * 12}.png") for number in range(400)]
    (folder / "images").mkdir()
    for file in images:
        Image.fromarray(draws.integers(0, 256, (30, 40, 3), np.uint8)).save(file)
    runs = []
    config = {"data": {"_target_": "imago.data.file_datamodule.ImageFolderDataModule", "root": f"{folder}/images"}}
    times = {"train": 6.0, "data_wait": 0.5, "val": 1.0}
    for name, noise in (("first", 0.2), ("second", 0.4)):
        run = make_run(folder / "train" / name, lr=noise, config=config, time_s=times)
        predicted = np.where(draws.random(400) < noise, draws.integers(0, 12, 400), labels)
        probability = draws.uniform(0.1, 1, 400).tolist()
        make_evaluation(run, labels.tolist(), predicted.tolist(), probability, images, NAMES)
        (run / "figures").mkdir()
        Image.fromarray(draws.integers(0, 256, (300, 600, 3), np.uint8)).save(run / "figures" / "train_images.png")
        runs.append(run)
    failed = make_run(folder / "train" / "failed", status="failed", reason="the loss is nan " * 20, test=None, val=None)
    (failed / "metrics.csv").unlink()
    written = {name: folder / f"{name}.html" for name in ("run", "bare", "comparison", "sweep")}
    write_run_page(runs[0], "test", written["run"])
    write_run_page(failed, "test", written["bare"])
    write_comparison_page(compare_runs(*runs), written["comparison"])
    write_sweep_page(rank_settings(make_sweep(folder / "a_sweep")), written["sweep"])
    return written


@pytest.fixture
def shown(browser: "Browser", pages: dict[str, Path]) -> "Iterator[Callable[..., Page]]":
    """Return a function that opens a page; any request to the network fails the test."""
    contexts, requests = [], []

    def run(name: str, width: int, scheme: str) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: requests.append(message.text))
        page.goto(pages[name].as_uri())
        return page

    yield run
    for context in contexts:
        context.close()
    assert [url[:80] for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
@pytest.mark.parametrize("name", ["run", "bare", "comparison", "sweep"])
def test_a_page_fits_and_can_be_read(name: str, width: int, scheme: str, shown, tmp_path: Path):
    page = shown(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate(HARD_TO_READ) == []
    assert page.evaluate(OVERLAPPING) == []
    image = Image.open(io.BytesIO(page.screenshot(path=tmp_path / f"{name}-{scheme}-{width}.png", full_page=True)))
    brightness = np.median(np.asarray(image.convert("L")))
    assert brightness > 235 if scheme == "light" else brightness < 50


def test_every_image_is_shown(shown):
    page = shown("run", 1280, "light")
    widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == 26
    assert min(widths) > 0


def test_the_keyboard_reaches_the_content_the_sections_and_what_scrolls(shown):
    page = shown("run", 400, "light")
    reached = []
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement !== document.body"):
        reached.append(page.evaluate("(e => e.ariaLabel || e.textContent.trim())(document.activeElement)"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
        page.keyboard.press("Tab")
    assert reached[:3] == ["To the content", "Curves", "Time"]
    assert {"Confusion matrix", "Every setting"} <= set(reached)
