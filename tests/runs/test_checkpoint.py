"""Checkpoint files are written atomically, and read only if they are intact, plain data and of this project."""

import errno
import random
import zipfile
from pathlib import Path

import pytest
import torch
from pickled_calls import Calls

from imago.errors import DataError
from imago.runs.checkpoint import AtomicCheckpointIO, check_structure, read_checkpoint, write_checkpoint

WEIGHT = torch.arange(64, dtype=torch.float32)
CHECKPOINT = {"imago": {"schema": 2}, "state_dict": {"weight": WEIGHT}, "epoch": 3, "names": ["ant", "bee"]}


@pytest.fixture
def path(tmp_path) -> Path:
    """An intact checkpoint."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint(CHECKPOINT, path)
    return path


def is_whole(checkpoint: dict) -> bool:
    weight = checkpoint["state_dict"]["weight"]
    return torch.equal(weight, WEIGHT) and checkpoint | {"state_dict": None} == CHECKPOINT | {"state_dict": None}


# Writing


def test_the_plugin_of_lightning_writes_and_reads_the_same(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    hparams = {"lr": 0.1, "net": torch.nn.Linear(1, 1)}
    plugin = AtomicCheckpointIO("mytask.Task", left_out=["net"])
    plugin.save_checkpoint({"hyper_parameters": hparams} | CHECKPOINT, str(path))
    loaded = plugin.load_checkpoint(str(path))
    assert loaded.pop("hyper_parameters") == {"lr": 0.1}
    assert is_whole(loaded)
    plugin.save_checkpoint({key: value for key, value in CHECKPOINT.items() if key != "imago"}, str(path))
    header = {"schema": 2, "torch": str(torch.__version__), "task": "mytask.Task"}
    assert plugin.load_checkpoint(str(path))["imago"] == header


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_no_part(path, monkeypatch, error: BaseException):
    def fail(checkpoint, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(error)):
        write_checkpoint(CHECKPOINT | {"epoch": 4}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert is_whole(read_checkpoint(path))


def test_the_old_file_is_intact_until_the_new_one_is(path, monkeypatch):
    save = torch.save
    seen = []

    def save_and_read(checkpoint, file):
        save(checkpoint, file)
        seen.append(read_checkpoint(path)["epoch"])

    monkeypatch.setattr(torch, "save", save_and_read)
    write_checkpoint(CHECKPOINT | {"epoch": 4}, path)
    assert (seen, read_checkpoint(path)["epoch"]) == ([3], 4)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", ["last.ckpt", "run [1].ckpt"])
def test_the_next_save_removes_the_partial_file_of_a_killed_one(tmp_path, name: str):
    (tmp_path / f"{name}.99999.part").write_bytes(b"half of it")
    (tmp_path / f"other-{name}.99999.part").write_bytes(b"of another file")
    write_checkpoint(CHECKPOINT, tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([f"other-{name}.99999.part", name])


# Damaged files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.ckpt does not exist"):
        read_checkpoint(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_called_truncated(path, share: float):
    data = path.read_bytes() if share else random.Random(0).randbytes(5000)
    path.write_bytes(data[: int(share * len(data))])
    num_bytes = path.stat().st_size
    with pytest.raises(DataError, match=rf"last\.ckpt is truncated or not a checkpoint \({num_bytes} bytes\)"):
        read_checkpoint(path)


def test_one_flipped_bit_in_a_weight_is_found(path):
    data = bytearray(path.read_bytes())
    data[data.index(WEIGHT.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"last\.ckpt is damaged: the checksum of .*data/0 does not match"):
        read_checkpoint(path)


def test_a_flipped_bit_anywhere_is_a_data_error_or_changes_nothing(path):
    data = path.read_bytes()
    directory = data.index(b"PK\x01\x02")  # the zip's own fields: bit 3 turns "stored" into "compressed" there
    flips = [(index, index % 8) for index in range(0, len(data), 13)]
    flips += [(index, 3) for index in range(directory, len(data), 3)]
    refused = 0
    for index, bit in flips:
        path.write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
        try:
            assert is_whole(read_checkpoint(path)), f"bit {bit} of byte {index} of {len(data)}"
        except DataError:
            refused += 1
    assert refused > len(flips) / 4  # the rest is padding


# Files of others


@pytest.mark.parametrize(
    "content", [{"weight": WEIGHT}, WEIGHT, *({"imago": header} for header in (3, None, {}, {"schema": "x"}))]
)
def test_a_file_without_an_intact_header_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(DataError, match=r"last\.ckpt is not a checkpoint of this project"):
        read_checkpoint(path)


def test_another_zip_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "Dear reader")
    with pytest.raises(DataError, match=r"last\.ckpt cannot be loaded"):
        read_checkpoint(path)


def read_through_lightning(path: Path) -> dict:
    return AtomicCheckpointIO().load_checkpoint(path, weights_only=False)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("read", [read_checkpoint, read_through_lightning])
def test_code_in_a_checkpoint_is_refused_and_never_runs(path, is_zip: bool, read):
    target = path.parent / "ran"
    torch.save({"imago": {}, "x": Calls(Path.touch, target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(DataError, match=r"last\.ckpt") as caught:
        read(path)
    assert not target.exists()
    assert str(caught.value).isprintable()
    assert "can still be loaded" not in str(caught.value)  # torch's advice to load it anyway


@pytest.mark.parametrize(
    ("schema", "words"), [(1, "the first edition of imago; commit 7986d1c reads it"), (3, "a later version of imago")]
)
def test_a_checkpoint_of_another_edition_names_what_reads_it(path, schema: int, words: str):
    write_checkpoint(CHECKPOINT | {"imago": {"schema": schema}}, path)
    with pytest.raises(DataError, match=f"was written by {words}"):
        read_checkpoint(path)


# Structure

EXAMPLE = {"epoch": 0, "lr": 0.1, "names": ["", ""], "weight": WEIGHT, "nested": {"text": "", "any": {}}, "fused": None}


def test_a_structure_of_the_same_kinds_passes_with_further_fields():
    saved = {"epoch": 7.0, "lr": 1, "names": ("a", "b"), "weight": WEIGHT[:3], "fused": True, "more": object()}
    check_structure(saved | {"nested": {"text": "x", "any": {"a": [1]}}}, EXAMPLE, "x.ckpt")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epoch": "3"}, "epoch is str, not int"),
        ({"lr": None}, "lr is NoneType, not float"),
        ({"names": "ab"}, "names is str, not list"),
        ({"names": ["a"]}, "names has 1 entries, not 2"),
        ({"names": ["a", 2]}, r"names\.1 is int, not str"),
        ({"weight": [1.0]}, "weight is list, not Tensor"),
        ({"nested": {"any": {}}}, r"nested\.text is missing"),
        ({"nested": {"text": "", "any": []}}, r"nested\.any is list, not dict"),
        ({"nested": WEIGHT}, "nested is Tensor, not dict"),
        ({"fused": "x"}, "fused is str, not NoneType"),
    ],
)
def test_a_changed_field_is_named(changes: dict, text: str):
    with pytest.raises(DataError, match=rf"^x\.ckpt: its field hparams\.{text}; it was changed after saving") as caught:
        check_structure(EXAMPLE | changes, EXAMPLE, "x.ckpt", "hparams")
    assert "\n" not in str(caught.value)


def test_bytes_before_the_zip_are_refused(path):
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with pytest.raises(DataError, match="is truncated or not a checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_of_another_device_is_read_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning copies the tensors to the device of the run, which may be another one, or a CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        write_checkpoint(CHECKPOINT, tmp_path / "a.ckpt")
    loaded = AtomicCheckpointIO("mynet.Task").load_checkpoint(tmp_path / "a.ckpt", weights_only=None)
    assert loaded["state_dict"]["weight"].device == torch.device("cpu")
