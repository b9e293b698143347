"""Which file of a trained network a path means."""

from pathlib import Path

import pytest

from imago.errors import ConfigError, DataError
from imago.inference.find_model import check_and_find_model, resolve_checkpoint


def test_a_checkpoint_of_a_run_is_found_by_keyword_name_or_path(tmp_path: Path):
    run, directory = tmp_path / "run", tmp_path / "run" / "checkpoints"
    for file in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/epoch=3.ckpt", "export/model.onnx", "../x.onnx"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).touch()
    assert resolve_checkpoint(run) == directory / "best.ckpt"
    for name in ("epoch=3", "epoch=3.ckpt", str(directory / "epoch=3.ckpt")):
        assert check_and_find_model(str(run), name, "auto", []) == (directory / "epoch=3.ckpt", run)
    for file in (directory / "best.ckpt", run / "export" / "model.onnx"):
        assert check_and_find_model(str(file), "best", "auto", []) == (file, run)
    assert check_and_find_model(f"{tmp_path}/x.onnx", "best", "auto", []) == (tmp_path / "x.onnx", None)


def test_a_missing_path_is_answered_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = tmp_path / "logs" / "train"
    for name in ("resnet18_s0", "resnet18_s1", "vit"):
        (runs / name / "checkpoints").mkdir(parents=True)
    (runs.parent / "latest").symlink_to("train/deleted")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imago.inference.find_model.PROJECT_ROOT", tmp_path)
    wanted = "does not exist; type a run directory such as logs/latest, or a checkpoint file"
    for typed, end in [
        ("logs/train/resnet18_so", "; did you mean logs/train/resnet18_s[01]?"),
        ("resnet18_s1", "; did you mean logs/train/resnet18_s1?"),
        ("lgos", "."),  # logs/ is no run
        ("logs/train/xyz", "."),
        ("logs/latest", "."),
        ("no/such/vit", "."),
    ]:
        with pytest.raises(DataError, match=f"^{typed} {wanted}{end.replace('?', '[?]')}$"):
            resolve_checkpoint(Path(typed))


@pytest.mark.parametrize("name", ["", "checkpoints/best.ckpt", "export/model.onnx"])
def test_a_run_or_a_file_beside_links_is_refused_before_anything_is_read(tmp_path: Path, name: str):
    for file in ("run/config.yaml", "run/checkpoints/best.ckpt", "run/export/model.onnx", "alone/x.onnx"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "run" / "eval").symlink_to(tmp_path)
    with pytest.raises(DataError, match="/run/eval is a link"):
        check_and_find_model(str(tmp_path / "run" / name), "best", "auto", [])
    (tmp_path / "alone" / "predictions").symlink_to(tmp_path)
    with pytest.raises(DataError, match="/alone/predictions is a link"):
        check_and_find_model(str(tmp_path / "alone" / "x.onnx"), "best", "auto", [])


@pytest.mark.parametrize(
    ("run", "ckpt", "accelerator", "text"),
    [
        ("run", "last", "auto", r"^run=.*/run has no checkpoints/last.ckpt; it is not a run directory, or the run has"),
        ("run", "/no/such.ckpt", "auto", r"^run=.*/run has no checkpoint /no/such\.ckpt; it is not a run directory"),
        (
            "x.onnx",
            None,
            "gpu",
            r"ckpt= is not best, last or a file\.\naccelerator=gpu: run=.* is an ONNX .*\nlimit=0$",
        ),
        ("openvino", "best", "auto", r"^run=.*/openvino is an exported file that only its own runtime reads; type an "),
        ("openvino/model.pt2", "best", "auto", r"^run=.*/model\.pt2 is an exported file that only its own runtime"),
    ],
)
def test_mistakes_in_settings_are_one_line_each(tmp_path: Path, run: str, ckpt: str, accelerator: str, text: str):
    for directory in ("run", "openvino"):
        (tmp_path / directory).mkdir()
    for name in ("metadata.json", "model.pt2"):
        (tmp_path / "openvino" / name).touch()
    with pytest.raises(ConfigError, match=text):
        check_and_find_model(f"{tmp_path}/{run}", ckpt, accelerator, ["limit=0"] if run == "x.onnx" else [])
