"""Every test named in docs/promises.md exists."""

import re

from imago.paths import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "docs" / "promises.md").read_text()


def test_every_named_test_exists():
    file, missing, num_found = None, [], 0
    for name in re.findall(r"`([\w/.]*\.py(?:::\w+)?|::\w+)`", PAGE):
        path, _, test = name.partition("::")
        if path and not path.startswith("benchmarks/"):
            file = PROJECT_ROOT / "tests" / path
        if path.startswith("benchmarks/"):
            continue
        exists = file is not None and file.is_file() and (not test or f"def {test}(" in file.read_text())
        num_found += exists
        if not exists:
            missing.append(name)
    assert missing == []
    assert num_found > 30
