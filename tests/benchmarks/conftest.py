"""Import scripts of benchmarks/ and docs/, which are not packages."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest

from imago.paths import PROJECT_ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a script by its name."""
    monkeypatch.syspath_prepend(PROJECT_ROOT / "docs")
    monkeypatch.syspath_prepend(PROJECT_ROOT / "benchmarks")
    return import_module
