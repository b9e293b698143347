"""Lines of code are counted without blank lines, comments and docstrings; functions with their docstring."""

from types import ModuleType

import pytest

from imago.paths import PROJECT_ROOT

SOURCE = '''"""Module.

Two paragraphs.
"""

# a comment
TEXT = """a text
over two lines"""


def add(a, b):
    """Add."""
    return a + b  # the sum
'''


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROJECT_ROOT / "benchmarks")
    import metrics

    return metrics


def test_code_lines_leave_out_blank_lines_comments_and_docstrings(metrics: ModuleType):
    assert metrics.code_lines(SOURCE) == 4


def test_the_length_of_a_function_includes_its_docstring(metrics: ModuleType, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "SRC", tmp_path)
    (tmp_path / "adding.py").write_text(SOURCE)
    assert metrics.functions(tmp_path / "adding.py") == [(3, "adding.py:add")]
