"""Comparison of two runs: matched images, refused ones, settings, and the numbers of the paired test."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import make_evaluation, make_run

from imago.analysis.comparison import compare_runs, comparison_text, write_comparison_page
from imago.errors import DataError


def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    return make_run(tmp_path / "train" / "a", lr=0.1), make_run(tmp_path / "train" / "b", lr=0.2)


def refusal(a: Path, b: Path) -> str:
    """Return why there is no paired test; the page of the two runs is written without it, over an older one."""
    comparison = compare_runs(a, b)
    assert comparison.paired is None
    page = a / "page.html"
    page.write_text("an older comparison")
    write_comparison_page(comparison, page)
    assert "optimizer.lr" in page.read_text()
    assert "different images" in page.read_text()
    (reason,) = comparison.notes
    return reason


def test_settings_are_listed_as_typed_and_a_missing_one_is_empty(tmp_path: Path):
    a = make_run(tmp_path / "a", config={"compile": True, "tune": None})
    b = make_run(tmp_path / "b", config={"tune": "lr"})
    assert compare_runs(a, b).settings == [("compile", "true", ""), ("tune", "null", "lr")]
    reasons = compare_runs(a, b).notes
    assert [reason.partition("create it with: ")[2] for reason in reasons] == [
        f"python src/eval.py run={run}" for run in (a, b)
    ]


def test_a_run_without_readable_settings_is_refused_by_name(tmp_path: Path):
    a, b = two_runs(tmp_path)
    (b / "config.yaml").write_text("{")
    with pytest.raises(DataError, match=rf"^{b / 'config.yaml'} cannot be read: .*; without its settings") as error:
        compare_runs(a, b)
    assert "\n" not in str(error.value)


def test_images_and_classes_are_matched_by_name_in_any_order_and_directory(tmp_path: Path):
    a, b = two_runs(tmp_path)
    names = ["/data/ant/1.jpg", "/data/ant/2.jpg", "/data/bee/3.jpg"]
    make_evaluation(a, [0, 0, 1], [0, 0, 0], images=names, images_sha256="i")
    moved = [name.replace("/data/", "/mnt/x/") for name in reversed(names)]
    moved_settings = {"data_root": "/mnt/x", "data_fingerprint": "f2", "images_sha256": "i"}
    make_evaluation(b, [0, 1, 1], [0, 1, 0], images=moved, class_names=("bee", "ant"), **moved_settings)
    paired = compare_runs(a, b).paired
    assert paired is not None
    # a is right on 1 and 2, b on 3 and 2 (the middle one).
    assert (paired.num_images, paired.num_only_a, paired.num_only_b, paired.difference) == (3, 1, 1, 0.0)


def test_different_images_are_refused_by_name(tmp_path: Path):
    a, b = two_runs(tmp_path)
    make_evaluation(a, [0] * 5, [0] * 5, images=[f"/data/{n}.jpg" for n in range(5)])
    make_evaluation(b, [0] * 2, [0] * 2, images=["/data/0.jpg", "/data/x\x1b[2J.jpg"])
    assert re.search(r"only .*/a/.* has 1.jpg, 2.jpg, 3.jpg and 1 more; train both", refusal(a, b))
    c = make_run(tmp_path / "train" / "c", lr=0.3)
    make_evaluation(c, [0], [0], images=["/data/0.jpg"])
    assert re.search(r"only .*/b/.* has x\\x1b\[2J.jpg; ", refusal(c, b))


def test_control_characters_of_a_run_directory_do_not_reach_the_screen(tmp_path: Path):
    a, b = make_run(tmp_path / "a\x1b[2J"), make_run(tmp_path / "b")
    text = comparison_text(compare_runs(a, b))
    assert text.replace("\n", "").isprintable()
    assert text.count(r"a\x1b[2J") == 3  # its name, the missing file, the command
    for run in (a, b):
        make_evaluation(run, [0, 1], [0, 1])
        (run / "provenance.json").write_text('{"data": "other"}')
    text = comparison_text(compare_runs(a, b))
    assert "note: the dataset of" in text
    assert text.replace("\n", "").isprintable()


def test_a_final_test_over_several_views_is_noted(tmp_path: Path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", config={"tta": "flip"})
    for run in (a, b):
        make_evaluation(run, [0, 1], [0, 1])
    comparison = compare_runs(a, b)
    write_comparison_page(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("60.00 % (95 %: 57.00 to 63.00, n = 1,000") == 2
    assert page.count("n = 1,000, with tta=flip)") == 1


def test_the_same_image_with_another_class_is_refused(tmp_path: Path):
    a, b = two_runs(tmp_path)
    make_evaluation(a, [0, 1], [0, 1], images=["/data/x.jpg", "/data/y.jpg"])
    make_evaluation(b, [0, 2], [0, 1], images=["/data/x.jpg", "/data/y.jpg"])
    assert re.search(r"y.jpg is bee in .*, cat in ", refusal(a, b))


@pytest.mark.parametrize("other", [{"data_fingerprint": "f2"}, {"images_sha256": "i2"}])
def test_images_with_equal_names_and_classes_but_other_contents_are_refused(tmp_path: Path, other: dict):
    a, b = two_runs(tmp_path)
    same = {} if "data_fingerprint" in other else {"images_sha256": "i1"}
    make_evaluation(a, [0, 1], [0, 1], **same)
    make_evaluation(b, [0, 1], [0, 1], **(same | other))
    reason = refusal(a, b)
    assert re.search(r"the contents have the hash [fi]1 in .*, [fi]2 in .*", reason)
    assert reason.endswith(f"evaluate both again: python src/eval.py run={a}, python src/eval.py run={b}")


def test_results_of_a_replaced_checkpoint_are_not_compared(tmp_path: Path):
    a, b = two_runs(tmp_path)
    for run in (a, b):
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").write_bytes(b"weights")
        make_evaluation(run, [0, 1], [0, 1], model_sha256=hashlib.sha256(b"weights").hexdigest())
    assert compare_runs(a, b).paired is not None
    (b / "checkpoints" / "best.ckpt").write_bytes(b"trained on")
    comparison = compare_runs(a, b)
    assert comparison.paired is None
    assert (
        f"{b}/eval/test is not of the present best.ckpt, but of another checkpoint; renew it: " in comparison.notes[0]
    )
    assert f"python src/eval.py run={b}" in comparison_text(comparison)


def test_data_that_changed_after_the_training_is_noted_beside_the_paired_test(tmp_path: Path):
    a, b = two_runs(tmp_path)
    (a / "provenance.json").write_text('{"data": "f0"}')
    (b / "provenance.json").write_text('{"data": "f1"}')
    for run in (a, b):
        make_evaluation(run, [0, 1], [0, 1])
    comparison = compare_runs(a, b)
    assert comparison.paired is not None
    assert f"note: the dataset of {a} changed before {a}/eval/test; the test images may differ" in comparison_text(
        comparison
    )
    write_comparison_page(comparison, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("the test images may differ") == 1


def test_terminal_and_page_have_the_same_numbers(tmp_path: Path):
    a, b = two_runs(tmp_path)
    make_evaluation(a, [0] * 40, [0] * 20 + [1] * 20)
    make_evaluation(b, [0] * 40, [0] * 35 + [1] * 5)
    comparison = compare_runs(a, b)
    text = comparison_text(comparison)
    assert "accuracy of b: 87.50 % (on the same 40 images of test)" in text
    assert "b - a, in percentage points: +37.50 (95 % interval +24.22 to +52.97)" in text
    assert "McNemar's exact test: p < 0.0001 (only a correct: 0, only b correct: 15)" in text
    assert re.search(r"images needed: about \d+ \(of test, to find a difference of this size in 80 % of cases", text)
    grouped = replace(comparison, paired=replace(comparison.paired, num_groups=4))
    assert "images needed" not in comparison_text(grouped)  # as many images in groups would not be enough
    write_comparison_page(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in ("b is significantly better on these images", "+37.50", "p &lt; 0.0001", "optimizer.lr", "val/acc"):
        assert words in page, words


def test_further_metrics_are_rows_with_their_intervals(tmp_path: Path):
    tests = {name: {"acc": 0.5, "num_images": 2, "f1": f1} for name, f1 in (("a", 0.5), ("b", 1.0))}
    runs = [make_run(tmp_path / name, test=test) for name, test in tests.items()]
    make_evaluation(runs[0], [0, 1], [0, 0], f1=0.5, f1_interval_95=[0.25, 0.75])
    make_evaluation(runs[1], [0, 1], [0, 1], f1=1.0, f1_interval_95=[0.5, 1])
    write_comparison_page(compare_runs(*runs), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    cells = ("0.5000 (95 %: 0.2500 to 0.7500, n = 2)", "1.0000 (95 %: 0.5000 to 1.0000, n = 2)")
    assert '<th scope="row">test/f1</th>' in page
    assert all(f"<td>{cell}</td>" in page for cell in cells)
