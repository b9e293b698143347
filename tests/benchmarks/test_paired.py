"""Differences between runs are paired by seed; intervals against values computed by hand."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def paired(script) -> ModuleType:
    return script("paired")


def runs(paired: ModuleType, **accs: list[float]) -> list:
    return [
        paired.Run(f"{side}_{seed}", side, seed, acc, 100, 0.5, 60.0)
        for side in accs
        for seed, acc in enumerate(accs[side])
    ]


def test_the_difference_is_paired_by_seed_in_any_order(paired: ModuleType):
    both = runs(paired, one=[0.5, 0.7, 0.9], other=[0.4, 0.5, 0.9])
    difference = paired.difference(both[::-1], "one", "other")
    assert sorted(difference["pairs"]) == pytest.approx([0.0, 0.1, 0.2])
    assert difference["mean"] == pytest.approx(0.1)
    half = 4.303 * 0.1 / 3**0.5  # Student's t of 2 degrees of freedom; the standard deviation is 0.1
    assert difference["interval_95"] == pytest.approx([0.1 - half, 0.1 + half], rel=1e-3)
    assert "one minus other: +10.00 points, 95 % interval -14.84 to +34.84, n = 3" in paired.describe_difference(
        difference
    )


def test_one_seed_has_no_interval(paired: ModuleType):
    assert paired.difference(runs(paired, one=[0.5], other=[0.4]), "one", "other")["interval_95"] is None


def test_an_interval_over_images_counts_each_image_once(paired: ModuleType, monkeypatch: pytest.MonkeyPatch):
    right = {"one_0": [1, 1, 0, 1], "one_1": [1, 0, 0, 1], "other_0": [1, 0, 0, 0], "other_1": [1, 0, 0, 1]}
    monkeypatch.setattr(paired, "measure", lambda command: (0.0, 0.0))
    monkeypatch.setattr(
        paired, "load_evaluation", lambda folder: SimpleNamespace(is_correct=np.array(right[folder.name], bool))
    )
    both = runs(paired, one=[0.75, 0.5], other=[0.25, 0.5])
    difference = paired.difference_on_images(both[::-1], "one", "other", Path("logs"))
    half = 1.96 * (4 * 0.25**2 / 3) ** 0.5 / 4**0.5  # the gaps of the images are 0, 0.5, 0 and 0.5
    assert (difference["num_images"], difference["mean"]) == (4, 0.25)
    assert difference["interval_95"] == pytest.approx([0.25 - half, 0.25 + half])


def test_seeds_are_added_to_runs_of_the_same_commit_and_machine_only(
    paired: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = {"date": "today", "git_commit": "a" * 40, "cpu_model": "x"}
    monkeypatch.setattr(paired, "describe_environment", lambda: here)
    args = SimpleNamespace(json=tmp_path / "out.json", seeds=[1], override=[])
    first = runs(paired, one=[0.5], other=[0.4])
    paired.store(args.json, args, first)
    here["date"] = "tomorrow"
    assert paired.stored_runs(args) == first
    args.seeds = [0, 1]
    with pytest.raises(SystemExit, match=r"out\.json has seed 0 already; type others with --seeds"):
        paired.stored_runs(args)
    args.seeds, here["git_commit"] = [1], "b" * 40
    with pytest.raises(SystemExit, match=f"has git_commit {'a' * 40}, now it is {'b' * 40}"):
        paired.stored_runs(args)
