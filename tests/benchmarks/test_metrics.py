"""Lines of code are counted without blank lines, comments and docstrings; functions with their docstring."""

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


def test_code_lines_leave_out_blank_lines_comments_and_docstrings(script):
    assert script("metrics").code_lines(SOURCE) == 4


def test_the_length_of_a_function_includes_its_docstring(script, tmp_path, monkeypatch):
    metrics = script("metrics")
    monkeypatch.setattr(metrics, "SRC", tmp_path)
    (tmp_path / "adding.py").write_text(SOURCE)
    assert metrics.function_lengths(tmp_path / "adding.py") == [(3, "adding.py:add")]
