"""One run as a page (run_page.py, page.py): content, missing parts, escaping, and no network."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import make_evaluation, make_run

from imago.analysis.run_page import write_run_page
from imago.errors import DataError


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text = " ".join((self.text + " " + data).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(run: Path, split: str = "test") -> tuple[Page, list[str]]:
    """Write the page of a run; return it and what is missing in it."""
    file = run.parent / "pages" / "page.html"
    missing = write_run_page(run, split, file)
    return Page(file), missing


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[str]]:
    """Return the page of a finished run with an evaluation, image files and figures, one of them too large."""
    directory = tmp_path_factory.mktemp("evaluated")
    data, times = {"root": str(directory)}, {"train": 6.0, "data_wait": 0.5, "val": 1.0, "test": 0.5}
    run = make_run(directory / "train" / "first", config={"data": data}, time_s=times)
    samples = [directory / f"{number} ü.png" for number in range(40)]
    for number, file in enumerate(samples):
        Image.fromarray(np.full((20, 300 if number == 39 else 20, 3), 6 * number, np.uint8)).save(file)
    labels = [number % 3 for number in range(40)]
    predicted = [label if number % 4 == 0 else (label + 1) % 3 for number, label in enumerate(labels)]
    make_evaluation(run, labels, predicted, np.linspace(0.4, 0.99, 40).tolist(), list(map(str, samples)))
    (run / "figures").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(run / "figures" / "train_images.png")
    noise = np.random.default_rng(0).integers(0, 256, (750, 750, 3), np.uint8)
    Image.fromarray(noise).save(run / "figures" / "large.png", compress_level=1)
    return written(run)


def archive(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


_COUNTED = {"coverage": 0.9, "interval_95": [0.8, 0.95], "mean_size": 1.25}
SETS = _COUNTED | {"expected_95": [0.7, 1.0], "per_class": {"ant": _COUNTED | {"mean_size": 1.5}}}
IMAGES = np.zeros((1, 4, 4, 3), np.uint8)
UNKNOWN = {"data": "/photos/<b>", "num_unknown": 1234}
for _name in ("auroc", "fpr_at_95", "unknown_marked", "known_marked"):
    UNKNOWN |= {_name: 0.25, f"{_name}_interval": [0.125, 0.5]}


def test_unknown_images_of_the_same_checkpoint_and_split_are_shown(tmp_path: Path):
    run = make_run(tmp_path / "run")
    for split, digest, auroc in (
        ("test", "a", None),
        ("test-ood_x-1", "a", 0.75),
        ("test-tta_flip-ood_x-1", "a", 0.5),
        ("test-ood_old-1", "b", 0.3125),
        ("val-ood_x-1", "a", 0.4375),
    ):
        unknown = {} if auroc is None else {"unknown_images": UNKNOWN | {"auroc": auroc}}
        folder = make_evaluation(run, [0, 1], [0, 1], split=split, model_sha256=digest, **unknown)
        if auroc:
            Image.new("RGB", (3, 4)).save(folder / "unknown_images.png")
    page, _ = written(run)
    assert re.findall(r"AUROC ([\d.]+)%, 95 % interval 12\.50% to 50\.00%", page.text) == ["75.00", "50.00"]
    assert "1,234 images of /photos/<b>" in page.text
    assert [image["alt"] for image in page.all("img")] == ["Scores of known and of unknown images"] * 2
    for damaged in (b"5", b'{"data": "x"}', b'{"auroc": "x"}', json.dumps(UNKNOWN | {"auroc_interval": 1}).encode()):
        content = b'{"model_sha256": "a", "unknown_images": %s}' % damaged
        (run / "eval" / "test-ood_x-1" / "metrics.json").write_bytes(content)
        page, missing = written(run)
        assert len([note for note in missing if "test-ood_x-1 is damaged" in note]) == 1
        assert len(page.all("img")) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("per_class.csv", content) for content in (b"", b"\0", b"class\nant\nant\n", b"class,f1\nant\n", b"a\n1\n")),
        *(("mistakes.npz", content) for content in (b"", b"PK\x03\x04", archive(rows=[0, 1], images=IMAGES))),
        *(("mistakes.npz", archive(**arrays)) for arrays in ({"rows": [0]}, {"rows": [[0]], "images": IMAGES})),
        *(("mistakes.npz", archive(rows=[0], images=images)) for images in (IMAGES[0], IMAGES / 2, IMAGES[..., :2])),
        *(("metrics.json", b'{"interval_95": %s}' % value) for value in (b"5", b"[1]", b'["a", "b"]', b"null")),
        *(("metrics.json", b'{"f1": %s, "f1_interval_95": [0, 1]}' % value) for value in (b'"x"', b"null", b"[1]")),
        *(("metrics.json", b'{"prediction_sets": %s}' % value) for value in (b"5", b'{"90": 5}', b'{"90": {}}')),
        ("metrics.json", json.dumps({"prediction_sets": {"90": SETS | {"interval_95": [0]}}}).encode()),
        ("metrics.json", json.dumps({"prediction_sets": {"90": SETS | {"per_class": {"ant": [1]}}}}).encode()),
        *(("../../summary.json", b'{"seconds": 1, "time_s": %s}' % value) for value in (b"5", b'{"train": null}')),
        *(("../../provenance.json", b'{"git": %s}' % value) for value in (b"5", b'"x"', b'{"diff": 5}')),
        ("../../figures/x.png/y", b""),
    ],
)
def test_a_damaged_file_leaves_a_part_out_of_the_page(tmp_path: Path, name: str, content: bytes):
    run = make_run(tmp_path / "run")
    file = make_evaluation(run, [0, 1], [1, 1]) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    notes = write_run_page(run, "test", tmp_path / "page.html")
    if file.name in ("per_class.csv", "mistakes.npz", "metrics.json"):
        assert any("is damaged: " in note and "evaluate again" in note for note in notes)
    assert "optimizer" in (tmp_path / "page.html").read_text()


def test_prediction_sets_are_in_the_table_of_the_classes(tmp_path: Path):
    run = make_run(tmp_path / "run")
    make_evaluation(run, [0, 0], [0, 1], prediction_sets={"90": SETS})
    page, _ = written(run)
    assert (
        "90 % sets: coverage 90.00%, 95 % interval 80.00% to 95.00% (expected: 70.00% to 100.00%), mean size 1.25"
        in (page.text)
    )
    assert "recall precision images in 90 % set set size" in page.text
    assert "50.00 % 100.00 % 2 90.00% 1.50" in page.text


def test_the_figure_of_corrupted_images_is_shown_if_it_is_of_the_evaluated_checkpoint(tmp_path: Path):
    run = make_run(tmp_path / "train" / "first")
    make_evaluation(run, [0, 1, 2, 0], [0, 1, 1, 2], model_sha256="abc")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(run / "eval" / "test" / "robustness.png")
    for digest in ("abc", "def"):
        (run / "eval" / "test" / "robustness.json").write_text(json.dumps({"model_sha256": digest}))
        page, _ = written(run)
        assert ("Corrupted images" in page.text) == (digest == "abc")
        shown = [image["alt"] for image in page.all("img") if image["src"].startswith("data:image/png")]
        assert ("Accuracy and calibration error by corruption and severity" in shown) == (digest == "abc")


def test_a_page_has_all_results_of_a_run(evaluated: tuple[Page, list[str]]):
    page, _ = evaluated
    for words in ("train/first", "finished", "60.00 %", "95 %: 57.00 to 63.00, n = 1,000", "optimizer:", "commit abc"):
        assert words in page.text, words
    for words in ("waiting for data", "0.5 s", "4.00 %", "Expected calibration error", "The 25 of 30 mistakes"):
        assert words in page.text, words
    assert page.text.count(" true: ") == 25
    assert "39 ü.png" in page.text
    titles = [svg["aria-label"].partition(".")[0] for svg in page.all("svg") if "aria-label" in svg]
    assert titles == ["loss", "lr", "acc", "Accuracy"]


def test_a_figure_too_large_for_a_page_is_named_instead(evaluated: tuple[Page, list[str]]):
    page, missing = evaluated
    assert [note.rpartition("/")[2] for note in missing] == [
        "large.png is not in the page: it is not a PNG, or the page would be too large"
    ]
    assert len(page.source) < 300_000


def test_a_page_loads_nothing_and_runs_nothing(evaluated: tuple[Page, list[str]]):
    page, _ = evaluated
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert [link[:60] for link in links if not link.startswith(("data:image/", "#"))] == []
    assert page.all("script") == page.all("link") == []
    assert not re.search(r"url\(|@import|https?:", page.source.partition("<body>")[0])
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_images_are_small_and_described(evaluated: tuple[Page, list[str]]):
    images = evaluated[0].all("img")
    assert len(images) == 26
    names = "(ant|bee|cat)"
    assert all(re.fullmatch(f"{names}, predicted as {names}|train images", image["alt"]) for image in images)
    assert max(len(image["src"]) for image in images) < 20_000
    assert [image["src"][:15] for image in images].count("data:image/jpeg") == 1  # the one that is not small


def test_tables_have_headers_sections_have_names_and_scrolling_elements_can_be_reached_by_keyboard(
    evaluated: tuple[Page, list[str]],
):
    page, _ = evaluated
    assert {header.get("scope") for header in page.all("th")} == {"col", "row"}
    scrolling = [a for _, a in page.elements if "scroll" in a.get("class", "")] + page.all("pre")
    assert [a for a in scrolling if a.get("tabindex") != "0" or not a.get("aria-label")] == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.all("section") if "aria-labelledby" in section} <= set(ids)


def test_a_page_without_an_evaluation_names_the_command_that_creates_it(tmp_path: Path):
    run = make_run(tmp_path / "train" / "first")
    page, missing = written(run, "val")
    assert f"python src/eval.py run={run} split=val" in " ".join(missing)
    assert f"python src/eval.py run={run} split=val" in page.text
    assert any("figures/*.png" in note for note in missing)
    assert any("time_s" in note for note in missing)


def test_a_run_that_failed_at_once_has_a_page_with_its_reason(tmp_path: Path):
    run = tmp_path / "train" / "first"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"status": "failed", "reason": "data.root=<x> is missing"}')
    page, missing = written(run)
    assert "failed : data.root=<x> is missing" in page.text
    assert {note.partition(" ")[0] for note in missing} >= {str(run / "metrics.csv"), str(run / "config.yaml")}


def test_names_from_files_cannot_become_markup(tmp_path: Path):
    run = make_run(tmp_path / "train" / "<b>first")
    name = "<script>alert(1)</script>"
    make_evaluation(run, [0, 1], [1, 1], class_names=[name, "b"], images=["/<img src=x>.png", "/\udcff.png"])
    page, _ = written(run)
    assert page.all("script") == page.all("b") == page.all("img") == []
    assert name in page.text


def test_images_that_are_missing_or_damaged_are_replaced_by_the_reason(tmp_path: Path):
    data = {"_target_": "x.ImageFolderDataModule", "root": str(tmp_path)}
    run = make_run(tmp_path / "train" / "first", config={"data": data})
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n")
    samples = [str(tmp_path / "gone.png"), str(tmp_path / "half.png"), "7"]
    folder = make_evaluation(run, [0, 0, 0], [1, 1, 1], images=samples)
    (folder / "mistakes.npz").write_bytes(b"half")
    page, missing = written(run)
    assert f"{tmp_path / 'gone.png'} cannot be read: No such file" in page.text
    assert f"{tmp_path / 'half.png'} is" in page.text
    assert f"7 is not read: it is not below {tmp_path}, data.root of the run" in page.text
    assert any("mistakes.npz is damaged" in note for note in missing)


def test_of_many_classes_the_weakest_are_shown_and_the_matrix_is_left_out(tmp_path: Path):
    run = make_run(tmp_path / "train" / "first")
    names = [f"class{number:03}" for number in range(100)]
    make_evaluation(run, list(range(100)), [0, *range(1, 99), 0], class_names=names)
    page, _ = written(run)
    assert "The weakest 30 of 100 classes" in page.text
    assert [table for table in page.all("table") if table.get("class") == "confusion"] == []
    assert "class099 as class000 1" in page.text


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_an_evaluation_with_another_accuracy_than_the_final_test_is_noted(tta: str, tmp_path: Path):
    run = make_run(tmp_path / "train" / "first", config={"tta": tta})
    make_evaluation(run, [0, 1], [0, 1], tta="none")
    page, _ = written(run)
    assert f"the run's final test gave 60.00 % with tta={tta}, and this evaluation had tta=none; " in page.text


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path):
    run = make_run(tmp_path / "first")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"page.html cannot be written: .*output=FILE.html"):
        write_run_page(run, "test", tmp_path / "file" / "page.html")


def test_further_metrics_have_the_interval_of_an_evaluation_that_measured_the_same(tmp_path: Path):
    test = {"acc": 0.6, "interval_95": [0.57, 0.63], "num_images": 1000, "f1": 0.50001, "auroc": 0.9, "loss": 1.2}
    run = make_run(tmp_path / "a", val={"acc": 0.7, "f1": 0.55}, test=test)
    page, _ = written(run)
    assert "test/f1 0.5000 n = 1,000 val/f1 0.5500 epoch 2" in page.text
    assert "test/loss" not in page.text
    measured = {"f1": 0.5, "f1_interval_95": [0.47, 0.53], "auroc": 0.8, "auroc_interval_95": [0.78, 0.83]}
    make_evaluation(run, [0, 1], [0, 1], **measured)
    page, _ = written(run)
    assert "test/f1 0.5000 95 %: 0.4700 to 0.5300, n = 1,000" in page.text
    assert "test/auroc 0.9000 n = 1,000" in page.text
    table = "metric value 95 % interval f1 0.5000 0.4700 to 0.5300 auroc 0.8000 0.7800 to 0.8300 Each class"
    assert f"Metrics of these 2 images. {table}" in page.text


def test_a_task_without_an_accuracy_shows_its_losses(tmp_path: Path):
    run = make_run(tmp_path / "a", val={"loss": 0.5}, test={"loss": 0.25}, best_epoch=3)
    (run / "metrics.csv").write_text("step,val_loss\n1,0.5\n")
    page, _ = written(run)
    assert "test/loss 0.2500 val/loss 0.5000 epoch 3" in page.text
    assert "test accuracy" not in page.text
