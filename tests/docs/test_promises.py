"""Every test named in docs/promises.md exists."""

import re
from pathlib import Path

from imago.paths import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs" / "promises.md").read_text()


def test_every_named_test_exists():
    file, missing, num_tests = Path(), [], 0
    for name in re.findall(r"`([\w/.]*\.py(?:::\w+)?|::\w+)`", PAGE):
        path, _, test = name.partition("::")
        if path.startswith("benchmarks/"):
            continue
        file = PROJECT_ROOT / "tests" / path if path else file
        num_tests += 1
        if not file.is_file() or f"def {test}{'(' if test else ''}" not in file.read_text():
            missing.append(name)
    assert missing == []
    assert num_tests > 30
