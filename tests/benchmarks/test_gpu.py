"""The driver of the measurement on a GPU: a step that fails or takes too long leaves the others; what is packed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from imago.paths import PROJECT_ROOT


@pytest.fixture
def gpu(script) -> ModuleType:
    return script("gpu")


@pytest.fixture
def bench(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(gpu, "_card", lambda: {"name": "Card"})
    return gpu.Bench(SimpleNamespace(smoke=False, limit_s=60.0, json=tmp_path / "gpu.json", airbench=None))


STEPS = ("loader", "small", "speed", "time94", "compile", "airbench", "resnet18")


def test_a_step_that_fails_leaves_the_others_and_what_it_has_found(bench: Any, monkeypatch: pytest.MonkeyPatch):
    def step(name: str, found: dict[str, Any]) -> dict[str, Any]:
        found["half"] = 1
        if name == "speed":
            raise RuntimeError("train.py ended with 2:\nerror: no memory")
        return {"done": True}

    for name in STEPS:
        run = lambda found, name=name: step(name, found)  # noqa: E731
        run.__name__ = name
        monkeypatch.setattr(bench, name, run)
    bench.run()
    results = json.loads(bench.args.json.read_text(encoding="utf-8"))
    assert results["card"] == {"name": "Card"}
    assert [name for name in STEPS if results[name].get("done")] == [name for name in STEPS if name != "speed"]
    assert results["speed"]["half"] == 1
    assert results["speed"]["error"] == "train.py ended with 2: error: no memory"


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_command_ends_with_its_step(bench: Any, is_cut_off: bool):
    bench.step_end_s = time.monotonic() + 0.3  # `_call` waits at least a second
    code = "import time; print('row 1', flush=True); time.sleep(60)"
    start_s = time.monotonic()
    if is_cut_off:
        assert bench._call([sys.executable, "-c", code], Path.cwd(), is_cut_off=True) == "row 1\n"
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            bench._call([sys.executable, "-c", code], Path.cwd())
    assert time.monotonic() - start_s < 20


def test_ratios_are_those_of_the_rounds(gpu: ModuleType):
    assert gpu._ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_the_time_limits_of_the_steps_leave_some_for_the_last(gpu: ModuleType):
    assert set(gpu.LIMITS_S) == set(STEPS) - {"resnet18"}
    assert sum(gpu.LIMITS_S.values()) < 580  # the default of --limit-s


def test_a_package_that_is_not_locked_is_refused_before_anything_is_downloaded():
    command = ["bash", "benchmarks/gpu.sh", "--pack", "no-such-package"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --pack no-such-package: requirements.lock has no such package\n"


def test_a_script_of_somebody_else_finds_the_images_and_writes_beside_a_link(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "data" / "cifar-10-batches-py" / "test_batch").touch()
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path / "data"))
    bench.args.airbench = tmp_path / "script.py"
    code = "open('cifar10/train.pt', 'w').close(); import os; print(os.listdir('cifar10/cifar-10-batches-py'))"
    bench.args.airbench.write_text(code)
    assert bench.airbench({}) == {"script": "script.py", "last_lines": ["['test_batch']"]}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]
