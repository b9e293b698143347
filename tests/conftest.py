"""Fixtures for several tests: composed settings, the real datasets, commands in a process of their own."""

import copy
import functools
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from short_runs import SHORT, SWEEP, train
from warm_python import warm_hydra, warm_imago
from warm_runs import WarmRuns

from imago.paths import PROJECT_ROOT, register_resolvers

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Modules that test what Windows does not have are not collected there.
_POSIX = re.compile(
    r"\bimport (fcntl|resource)\b|os\.(fork|mkfifo|killpg|getsid|chmod|symlink)|symlink_to|\.chmod\(|SIG(KILL|USR1|HUP)"
    r"|/bin/sh|\"(ba)?sh\"|/proc|/dev/|(import|from) (served|imago\.serve\.deco|other_system)|sched_getaffinity"
)
collect_ignore = [
    str(file)
    for file in Path(__file__).parent.rglob("test_*.py")
    if os.name == "nt" and file.name != "test_system.py" and _POSIX.search(file.read_text("utf-8"))
]

# As in an activated environment, where printed commands start with `python`.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """Restore the loggers that a run in this process has changed."""
    loggers = [logging.getLogger(name) for name in ("imago", "py.warnings")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (level, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="session")
def compose() -> Callable:
    """Compose `configs/train.yaml` (or another one) with overrides, as a command line would.

    Each choice of options is composed once, which takes most of the time; values are then set as Hydra sets them.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    register_resolvers()
    parser = OverridesParser.create()

    @functools.cache
    def composed(config_name: str, choices: tuple[str, ...]):
        with initialize_config_dir(str(PROJECT_ROOT / "configs")):
            return hydra_compose(config_name, overrides=list(choices))

    def run(*overrides: str, config_name: str = "train"):
        is_value = {text: re.match(r"\w+\.[\w.]+=", text) is not None for text in overrides}
        cfg = copy.deepcopy(composed(config_name, tuple(text for text in overrides if not is_value[text])))
        for override in parser.parse_overrides([text for text in overrides if is_value[text]]):
            OmegaConf.update(cfg, override.key_or_group, override.value())
        return cfg

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of the real datasets; skips if it is missing."""
    folder = os.environ.get("IMAGO_DATA_DIR", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set IMAGO_DATA_DIR to the folder that holds cifar-10-batches-py and hymenoptera_data")
    return Path(folder)


@pytest.fixture
def command(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python ENTRY ARGS...` from the project root in a process of its own."""
    is_slow = request.node.get_closest_marker("slow") is not None

    def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess:
        return (warm_imago() if is_slow else warm_hydra()).run(*arguments, **settings)

    return run


@pytest.fixture(scope="session")
def without_torch() -> Callable[..., subprocess.CompletedProcess]:
    """Run `python ENTRY ARGS...` where importing torch or Lightning fails, with nothing of imago imported before."""

    def run(entry: str, *arguments: str) -> subprocess.CompletedProcess:
        code = (
            f"import sys, runpy; sys.modules.update(torch=None, lightning=None); sys.argv = {[entry, *arguments]!r}; "
        )
        return warm_hydra().run("-c", code + f"runpy.run_path({entry!r}, run_name='__main__')")

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> WarmRuns:
    """Runs in preloaded processes, all below one directory."""
    return WarmRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of all test processes together."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start headless Chromium: that of the system, else the one of `playwright install chromium`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        system = next(filter(None, map(shutil.which, _BROWSERS)), None)
        own = running.chromium.executable_path
        if system is None and not Path(own).exists():
            pytest.skip("no Chromium found; install it with: python -m playwright install chromium")
        # Chromium's sandbox does not work for root, as containers have it; these pages are our own.
        started = running.chromium.launch(executable_path=system or own, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def finished_run(shared_folder: Path) -> Path:
    """A short run on the drawn shapes, from the command line: one for all test processes, which only read it."""
    logs = shared_folder / "finished_run"
    with FileLock(f"{logs}.lock"):
        if not (logs / "screen.txt").exists():
            done = train(logs, *SHORT, "run_name=short")
            (logs / "screen.txt").write_text(done.stdout)
    return logs / "train" / "short"


@pytest.fixture(scope="session")
def exported_run(finished_run: Path, shared_folder: Path) -> Path:
    """A copy of it after `export.py`, which printed `export_screen.txt` next to its logs; also only read."""
    logs, screen = shared_folder / "exported_run", shared_folder / "export_screen.txt"
    with FileLock(f"{logs}.lock"):
        if not screen.exists():
            run = shutil.copytree(finished_run, logs / "train" / "short")
            done = warm_imago().run("src/export.py", f"run={run}", f"paths.log_dir={logs}")
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            screen.write_text(done.stdout)
    return logs / "train" / "short"


@pytest.fixture(scope="session")
def finished_sweep(shared_folder: Path) -> Path:
    """The four short runs of the README's sweep; also only read."""
    logs = shared_folder / "finished_sweep"
    with FileLock(f"{logs}.lock"):
        if not (logs / "screen.txt").exists():
            short = (*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=4", "model.hidden_features=16")
            done = train(logs, *SWEEP, *short, "sweep_name=sweep", warm_children=True)
            (logs / "screen.txt").write_text(done.stdout)
    return logs / "sweeps" / "sweep"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Summarize the repeated tests: each records its `rule` first, then numbers by name."""
    rules: dict[str, list[Any]] = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" and "rule" in dict(report.user_properties):
                rules[dict(report.user_properties)["rule"]].append(report)
    if rules:
        terminalreporter.section("repeated tests")
    for rule, reports in rules.items():
        terminalreporter.line(f"{rule}: {sum(report.passed for report in reports)} of {len(reports)}")
        for name in sorted({name for report in reports for name, _ in report.user_properties} - {"rule"}):
            values = [dict(report.user_properties)[name] for report in reports if name in dict(report.user_properties)]
            middle = statistics.median(values)
            terminalreporter.line(
                f"  {name}: sum {sum(values):.1f}, median {middle:.1f}, {min(values):.1f} to {max(values):.1f}"
            )
