"""A streamed run: killed in mid-epoch, on two ranks, with a store that fails; then eval, export and report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chunked_sets import CREDENTIALS, Store, drawn_samples, s3_store, upload, write_set
from short_runs import summary
from warm_python import warm_imago
from warm_runs import TWO, WarmRuns

from imago.runs.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streaming")]

NAMES = ["ant", "bee", "cat"]
# 2 epochs of 6 batches, mixed and recolored.
SHORT = (
    *("data=litdata", "data.batch_size=16", "data.shuffle_window=3", "model.hidden_features=16", "model.dropout=0.1"),
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "augment.mixup_alpha=0.2", "augment.brightness=0.2"),
    *("threads=1", "trainer.accelerator=cpu", "callbacks.last_checkpoint.every_minutes=0.0"),
)
KILL = "+callbacks.broken={_target_: interruptions.Kill, step: 9}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 samples in 18 chunks, in the order of their classes."""
    root = tmp_path_factory.mktemp("set")
    samples = drawn_samples(144, is_sorted=True)
    return write_set(root, samples, 8, sidecar={"class_names": NAMES, "labels": [label for _, label in samples]})


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as server:
        yield server


def environment(store: Store) -> dict[str, str]:
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": store.url}


@pytest.fixture(scope="module")
def whole(runs: WarmRuns, folder: Path) -> Path:
    """An undisturbed run from the directory."""
    done = runs.run(*SHORT, f"data.root={folder}", "run_name=whole")
    assert "windows of 3 of 18 chunks have 3 classes or more\n" in done.text  # spread, though sorted by class
    return runs.logs / "train" / "whole"


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = (read_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (run, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (summary(run)["val"], summary(run)["test"]) == (summary(other)["val"], summary(other)["test"])


def killed_and_resumed(runs: WarmRuns, name: str, *settings: str, **variables: str) -> Path:
    run = runs.logs / "train" / name
    runs.run(*SHORT, *settings, KILL, f"run_name={name}", expect=-9, **variables)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 8  # in mid-epoch
    runs.run(f"resume={run}", "callbacks.broken=null", **variables)
    return run


def test_a_run_from_the_store_with_workers_that_is_killed_has_the_weights_of_one_from_the_directory(
    runs: WarmRuns, folder: Path, store: Store, whole: Path, tmp_path: Path
):
    root = upload(store, folder)
    cache = ("data.num_workers=2", f"data.cache_dir={tmp_path}", "data.cache_gb=0.00005")
    run = killed_and_resumed(runs, "streamed", f"data.root={root}", *cache, **environment(store))
    assert_same_weights(run, whole)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.bin")) <= 50_000


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_soak_killed_streamed_runs(
    runs: WarmRuns, folder: Path, store: Store, whole: Path, tmp_path: Path, number: int, record_property: Any
):
    record_property("rule", "a killed streamed run resumes to the same weights")
    settings = (f"data.root={upload(store, folder)}", f"data.num_workers={number % 3}", f"data.cache_dir={tmp_path}")
    run = killed_and_resumed(runs, f"soak{number}", *settings, "data.cache_gb=0.00005", **environment(store))
    assert_same_weights(run, whole)


def test_two_ranks_end_in_the_same_weights_whatever_the_workers(runs: WarmRuns, folder: Path):
    found = []
    for num_workers in (0, 1):
        name = f"ranks{num_workers}"
        runs.run(*SHORT, *TWO, f"data.root={folder}", f"data.num_workers={num_workers}", f"run_name={name}")
        found.append(runs.logs / "train" / name)
    assert_same_weights(*found)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_store_that_stops_answering_ends_the_run_in_one_line_and_it_can_be_resumed(
    runs: WarmRuns, folder: Path, store: Store, whole: Path, tmp_path: Path, num_workers: int
):
    root = upload(store, folder)
    settings = (*SHORT, f"data.root={root}", f"data.num_workers={num_workers}", f"data.cache_dir={tmp_path}")
    name = f"lost{num_workers}"
    store.failing |= {f"chunk-0-{number}.bin": "half" for number in range(18) if number not in (0, 3, 6, 9, 12, 15)}
    try:
        lost = runs.run(*settings, f"run_name={name}", expect=2, **environment(store))
    finally:
        store.failing.clear()
    last = [line for line in lost.text.splitlines() if line.strip()][-1]
    assert f"error: {root}/chunk-0-" in last
    assert "cannot be downloaded" in last
    assert "Traceback" not in lost.text


def test_eval_export_check_and_report_read_it_as_a_folder(runs: WarmRuns, whole: Path, folder: Path, tmp_path: Path):
    log_dir = f"paths.log_dir={tmp_path}"
    for entry, *arguments in (
        ("src/eval.py", f"run={whole}"),
        ("src/eval.py", f"run={whole}", "data=litdata", f"data.root={folder}", "split=test"),
        ("src/export.py", f"run={whole}"),
        ("src/check.py", "data=litdata", f"data.root={folder}"),
        ("src/report.py", f"run={whole}"),
    ):
        done = warm_imago().run(entry, *arguments, log_dir)
        assert done.returncode in (0, 1 if "check" in entry else 0), (entry, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    result = json.loads((whole / "eval" / "test" / "metrics.json").read_text())
    assert result["num_images"] == summary(whole)["test"]["num_images"]
