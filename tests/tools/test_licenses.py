"""Every installed package has a license that allows to build on it; all files name the same version."""

import re
import tomllib
from email.message import Message
from types import SimpleNamespace
from typing import Any

import licenses
import pytest
import yaml

import imago
from imago.paths import PROJECT_ROOT


def package(name: str, **fields: str) -> Any:
    metadata = Message()
    for key, value in {"Name": name, **fields}.items():
        metadata[key.replace("_", "-")] = value
    return SimpleNamespace(metadata=metadata)


@pytest.mark.parametrize(
    ("fields", "is_fine"),
    [
        ({"License_Expression": "Apache-2.0"}, True),
        ({"License": "MIT License\n\nCopyright"}, True),
        ({"Classifier": "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"}, True),
        ({"Classifier": "License :: OSI Approved :: GNU Affero General Public License v3"}, False),
        ({"License_Expression": "GPL-3.0-only"}, False),
        ({}, False),
    ],
)
def test_a_package_without_a_license_or_with_a_binding_one_is_named(
    fields: dict[str, str], is_fine: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(licenses, "distributions", lambda: [package("some", **fields)])
    assert licenses.main() == (0 if is_fine else 1)
    assert f"to look at: {'none' if is_fine else 'some'}" in capsys.readouterr().out


def test_all_files_name_the_same_version():
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((PROJECT_ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## (\d\S+)", (PROJECT_ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert {project["version"], citation["version"], imago.__version__} == {newest}
