"""The page of the service in a browser, with the service itself: a person gets from a photo to its class."""

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx_files import write_channel_means
from page_visits import BLUE, GRAY, GREEN, RED, choose, file, give, image, violations, wait
from PIL import Image
from served import Server

from imago.serve.errors import STATUS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
SIZE = 96
HOSTILE = "<img src=x onerror=document.title='changed'>"
SCALE = 0.02
KEY = "a key of letters"


def probability_of_best(color: tuple[int, int, int]) -> float:
    powers = [math.exp(value * SCALE) for value in color]
    return max(powers) / sum(powers)


def write_model(path: Path) -> Path:
    """A network that marks images without one strong color as unlike those of the training."""
    unit = np.eye(3).tolist()
    detector = {"cutoff": 0.9, "num_images": 50, "mean": [0, 0, 0], "whitening": unit, "directions": unit}
    return write_channel_means(path, SIZE, ("red", "green", HOSTILE), SCALE, unknown_detector=detector)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with two versions of a model and low limits."""
    folder = tmp_path_factory.mktemp("service")
    write_model(folder / "colors.onnx")
    (folder / "models.yaml").write_text("models: {colors: {v1: colors.onnx, v2: colors.onnx}}")
    limits = ("max_body_mb=1", "max_pixels=2_000_000")
    server = Server(f"config={folder / 'models.yaml'}", *limits, "threads=1", "decoders=1", folder=folder)
    yield f"{server.url}/"
    assert server.stop() == 0


@pytest.fixture(scope="module")
def locked_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a key, which names only classes of at least 80 %."""
    folder = tmp_path_factory.mktemp("service")
    model = write_model(folder / "colors.onnx")
    server = Server(f"model={model}", "threshold=0.8", "threads=1", "decoders=1", folder=folder, IMAGO_API_KEY=KEY)
    yield f"{server.url}/"
    assert server.stop() == 0


@pytest.fixture
def opened(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Return a function that opens a page; a request to another host or an error of a script fails the test."""
    contexts, found = [], []

    def run(address: str, **settings: Any) -> "Page":
        context = browser.new_context(**settings)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith((address, "blob:", "data:")) else found.append(r.url))
        page.on("pageerror", lambda error: found.append(str(error)))
        # Chromium itself logs each answer of 400 and above.
        page.on("console", lambda m: None if is_expected(m) else found.append(m.text))
        page.goto(address)
        return page

    def is_expected(message: Any) -> bool:
        return message.type not in ("error", "warning") or message.text.startswith("Failed to load resource")

    yield run
    for context in contexts:
        context.close()
    assert found == []


def test_a_chosen_photo_shows_class_confidence_classes_crop_time_and_version(opened, address: str):
    page = opened(address)
    choose(page, file("my photo.png", image(RED)))
    sure = f"{100 * probability_of_best(RED):.1f}%"
    assert (page.inner_text("#answer"), page.inner_text("#sure")) == ("red", f"{sure} sure")
    rows = [text.split() for text in page.locator("#classes li").all_inner_texts()]
    assert rows[0] == ["red", sure]
    assert len(rows) == 3
    track, bar = (page.locator(f"#classes li >> nth=0 >> {part}").bounding_box() for part in (".track", ".track span"))
    assert bar["width"] / track["width"] == pytest.approx(probability_of_best(RED), abs=0.02)
    assert page.evaluate("[crop.naturalWidth, crop.naturalHeight]") == [SIZE, SIZE]
    assert page.evaluate("[photo.naturalWidth, photo.naturalHeight]") == [120, 100]
    assert page.inner_text("#name") == "my photo.png"
    assert re.fullmatch(r"Model colors, version v1; answered in \d+ ms\.", page.inner_text("#details"))
    assert page.inner_text("#status") == f"red: {sure}"  # what a screen reader says


def test_a_format_that_the_browser_cannot_show_is_shown_as_its_crop(opened, address: str):
    page = opened(address)
    choose(page, file("scan.tiff", image(RED, format="TIFF"), "image/tiff"))
    assert page.inner_text("#answer") == "red"
    assert page.evaluate("photo.src === crop.src && photo.naturalWidth") == SIZE


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(kind: str, opened, address: str):
    page = opened(address)
    give(page, kind, "image.png", image(GREEN))
    assert page.inner_text("#answer") == "green"
    give(page, kind, "")
    assert "a link or a text cannot be read" in page.inner_text("#errors")


def test_several_photos_are_listed_and_one_that_fails_is_named(opened, address: str):
    page = opened(address)
    broken = file("broken.png", image(RED, format="PNG")[:60])
    choose(page, file("a.png", image(RED)), broken, file("b.png", image(GREEN)), file("c.png", image(BLUE)))
    assert page.inner_text("#errors").startswith("broken.png: The image is damaged or incomplete.")
    assert page.inner_text("#answer") == "red"
    names = [text.split("\n")[0] for text in page.locator("#shots button").all_inner_texts()]
    assert names == [HOSTILE, "green", "red"]  # newest first
    page.get_by_role("button", name="green").click()
    assert (page.inner_text("#answer"), page.inner_text("#name")) == ("green", "b.png")
    assert page.evaluate("document.activeElement.id") == "answer"
    assert page.locator("#shots [aria-current=true]").inner_text().startswith("green")


def test_names_of_classes_and_files_are_text(opened, address: str):
    page = opened(address)
    choose(page, file("<b>bold</b>.png", image(BLUE)))
    assert page.inner_text("#answer") == HOSTILE
    assert page.inner_text("#name") == "<b>bold</b>.png"
    assert f"\u2068red\u2069, \u2068green\u2069, \u2068{HOSTILE}\u2069." in page.text_content("#known")
    choose(page, file("<b>bold</b>.png", image(BLUE)[:60]))
    assert page.inner_text("#errors").startswith("<b>bold</b>.png: ")
    assert page.locator("img[src=x], main b").count() == 0
    assert page.title() == "Classify a photo"


@pytest.mark.parametrize(
    ("name", "content", "type", "message"),
    [
        ("long.bmp", image(RED, 700, 700, "BMP"), "image/bmp", "The service reads up to 1 MB"),
        ("wide.png", image(RED, 2000, 1001), "image/png", "The service reads up to 2 million pixels"),
        ("notes.txt", b"text", "text/plain", "not an image that the service can read (JPEG, PNG, "),
        ("phone.heic", b"\0\0\0\x18ftypheic", "image/heic", "Save it as JPEG"),
        ("nothing.png", b"", "image/png", "The file is empty."),
    ],
)
def test_what_the_service_would_refuse_is_not_sent(name: str, content, type: str, message: str, opened, address: str):
    page = opened(address)
    sent = []
    page.on("request", lambda request: sent.append(request.method))
    choose(page, file(name, content, type))
    assert message.lower() in page.inner_text("#errors").lower()
    assert "POST" not in sent


def test_each_error_of_the_service_has_a_message_in_plain_words(opened, address: str):
    page = opened(address)
    messages = {}

    def choose_with_answer(status: int, body: str) -> None:
        page.route("**/predict?*", lambda route: route.fulfill(status=status, body=body))
        choose(page, file("a.png", image(RED)))
        page.unroute("**/predict?*")

    for code in STATUS.keys() - {"unauthorized"}:  # for which the key is asked
        choose_with_answer(STATUS[code], json.dumps({"error": {"code": code, "message": "It is so."}}))
        messages[code], said = page.inner_text("#errors p").split("\n")
        assert said == "The service says: It is so."
    assert len(set(messages.values())) == len(messages) - 3
    generic = {code for code, text in messages.items() if "did not accept this" in text}
    assert generic == {"bad_request", "forbidden", "method_not_allowed", "invalid_parameter"}  # faults of the page
    choose_with_answer(413, "<html>of a proxy</html>")
    assert "The file is too large" in page.inner_text("#errors")


def test_when_the_service_cannot_be_reached_the_photos_wait_for_another_try(opened, address: str):
    page = opened(address)
    page.wait_for_selector("#limits:not(:empty)")
    page.route("**/*", lambda route: route.abort() if not route.request.url.startswith("blob:") else route.continue_())
    choose(page, file("a.png", image(RED)), file("b.png", image(GREEN)))
    assert "The service cannot be reached." in page.inner_text("#errors")
    page.unroute("**/*")
    page.get_by_role("button", name="Try again with 2 photos").click()
    page.wait_for_selector("#shots li:nth-child(2)")
    assert page.inner_text("#errors") == ""
    assert page.inner_text("#answer") == "red"


def test_while_it_waits_the_page_shows_what_it_does_and_can_be_stopped(opened, address: str):
    page = opened(address)
    page.wait_for_selector("#limits:not(:empty)")
    page.route("**/predict?*", lambda route: None)  # no answer
    page.set_input_files("#files", [file("a.png", image(RED)), file("b.png", image(GREEN))])
    page.wait_for_selector("#bar:visible")
    assert page.get_by_label("Classifying a.png (1 of 2) ...").is_visible()
    assert page.inner_text("#status") == "Classifying a.png (1 of 2) ..."
    assert violations(page) == []
    page.get_by_role("button", name="Stop").click()
    wait(page)
    assert page.inner_text("#errors") == "a.png: Stopped before an answer came."
    assert page.evaluate("document.activeElement.id") == "files"  # the button that had the focus has gone
    page.unroute("**/predict?*")
    page.get_by_role("button", name="Try again with 2 photos").click()
    page.wait_for_selector("#shots li:nth-child(2)")


def test_the_browser_is_asked_to_run_nothing_else_and_to_keep_nothing(opened, address: str):
    page = opened(address)
    headers = page.reload().headers
    assert "script-src 'self'; style-src 'self'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")
    choose(page, file("a.png", image(RED)))
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_the_key_is_asked_for_and_an_answer_below_the_threshold_is_not_sure(opened, locked_address: str):
    page = opened(locked_address)
    for key in ("wrong", KEY):
        page.wait_for_selector("#asking[open]")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        if key != KEY:
            page.get_by_text("The service refused this key.").wait_for()
            assert violations(page) == []
    choose(page, file("a.png", image(GRAY)))
    assert page.inner_text("#answer") == "Not sure"
    best = f"{100 * probability_of_best(GRAY):.1f}%"
    assert page.inner_text("#sure") == (
        f"The most probable class is red with {best}; this service names a class from 80% on."
    )
    assert page.inner_text("#unlike").startswith("This photo is unlike those that the network was trained on")
    assert violations(page) == []
    choose(page, file("a.png", image(RED)))
    assert page.inner_text("#answer") == "red"
    assert not page.is_visible("#unlike")
    page.reload()
    page.wait_for_selector("#asking[open]")  # the page stores nothing
    page.keyboard.press("Escape")
    page.locator("#errors").get_by_text("The service asks for a key.").wait_for()


def test_a_version_is_chosen(opened, address: str):
    page = opened(address)
    page.wait_for_selector("#choice:visible")
    page.get_by_label("Model").select_option("colors v2")
    choose(page, file("a.png", image(RED)))
    assert "Model colors, version v2" in page.inner_text("#details")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark"), (400, "light")])
def test_every_state_fits_and_has_no_barrier(width: int, scheme: str, opened, address: str, tmp_path: Path):
    page = opened(address, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_selector("#limits:not(:empty)")
    long = "x" * 90 + ".png"
    for state, files in {
        "empty": [],
        "result": [file(long, image(RED, 1000, 30))],
        "gallery": [file(long, image(color)) for color in (RED, GREEN, BLUE, GRAY)],
        "error": [file(long, image(RED)[:60]), file("notes.txt", b"text", "text/plain")],
    }.items():
        if files:
            choose(page, *files)
        if state == "result":
            page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        assert violations(page) == [], state
        screen = Image.open(io.BytesIO(page.screenshot(path=tmp_path / f"{state}.png")))
        brightness = np.median(np.asarray(screen.convert("L")))
        assert brightness > 200 if scheme == "light" else brightness < 60, state


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened, address: str):
    page = opened(address)
    page.keyboard.press("Tab")
    choose(page, file("a.png", image(RED)), file("b.png", image(GREEN)), file("notes.txt", b"text", "text/plain"))
    reached = []
    while page.evaluate("document.activeElement !== document.body"):
        reached.append(page.evaluate("(e => e.labels?.[0]?.textContent ?? e.innerText)(document.activeElement)"))
        shown = "(e => getComputedStyle(e.type === 'file' ? e.labels[0] : e).outlineStyle)(document.activeElement)"
        assert page.evaluate(shown) == "solid", reached[-1]
        page.keyboard.press("Tab")
    words = ["Choose", "Model", "green", "red", "What"]
    assert [text.split()[0] for text in reached] == words
