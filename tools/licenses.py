"""Print the license of each installed package; exit code 1 if one has none, or one that binds what is built with it.

python tools/licenses.py
"""

import re
import sys
from importlib.metadata import Distribution, distributions

BINDING = re.compile(r"\bA?GPL|GNU (?:Affero )?General Public", re.IGNORECASE)
WEAK = re.compile(r"\bLGPL|Lesser|Library General", re.IGNORECASE)
LOOKED_AT = {
    "axe-playwright-python": "MIT, as its repository says; of tests",
    "cuda-toolkit": "names NVIDIA's packages, which have its license",
    "docutils": "its modules are in the public domain or BSD; the GPL is that of an Emacs mode",
}
MAX_CHARS = 60  # some packages have the whole text in this field


def license_of(package: Distribution) -> str:
    """Return the license as the package states it, in the newest of the three ways; "" if it does not."""
    metadata = package.metadata
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    named = ", ".join(text.rpartition(" :: ")[2] for text in classifiers)
    return metadata.get("License-Expression") or named or (metadata.get("License") or "").strip().split("\n")[0]


def main() -> int:
    """Print a line for each package and return the exit code."""
    licenses = {package.metadata["Name"]: license_of(package) for package in distributions()}
    for name in sorted(licenses, key=str.lower):
        print(f"{name:40} {LOOKED_AT.get(name) or licenses[name][:MAX_CHARS] or 'not stated'}")
    is_open = {
        name: not text or bool(BINDING.search(text)) and not WEAK.search(text) for name, text in licenses.items()
    }
    bad = [name for name in licenses if is_open[name] and name not in LOOKED_AT]
    print(f"\n{len(licenses)} packages; to look at: {', '.join(sorted(bad)) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
