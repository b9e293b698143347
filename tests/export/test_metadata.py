"""The metadata of an exported directory are read only if they are of this schema and describe its files."""

import json
from pathlib import Path

import pytest

from imago.errors import DataError
from imago.export.metadata import read_metadata, write_metadata


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.bin").write_bytes(b"weights")
    write_metadata(tmp_path, {"class_names": ["ä", "b"]})
    return tmp_path


def test_metadata_are_read_back(directory: Path):
    metadata = read_metadata(directory)
    assert (metadata["class_names"], metadata["schema"], list(metadata["files"])) == (["ä", "b"], 1, ["model.bin"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "has schema None, not schema 1"),
        ('{"schema": 2}', "metadata.json has schema 2, not schema 1; export it again"),
    ],
)
def test_another_schema_is_one_line(directory: Path, content: str, text: str):
    (directory / "metadata.json").write_text(content)
    with pytest.raises(DataError, match=text) as caught:
        read_metadata(directory)
    assert "\n" not in str(caught.value)


def test_a_changed_or_missing_file_is_named(directory: Path):
    for change in (lambda file: file.write_bytes(b"Weights"), Path.unlink):
        change(directory / "model.bin")
        with pytest.raises(DataError, match=r"model\.bin is missing, or was changed after its export; export it again"):
            read_metadata(directory)
    assert json.loads((directory / "metadata.json").read_text())["schema"] == 1
