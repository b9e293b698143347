"""Results of `eval.py`, read back: scores, mistakes, image names, and damaged files."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from run_folders import make_evaluation

from imago.analysis.evaluation import eval_command, load_evaluation, load_image, saved_images
from imago.errors import DataError


def test_a_class_without_images_keeps_its_index(tmp_path: Path):
    make_evaluation(tmp_path, [0, 2], [2, 2])
    evaluation = load_evaluation(tmp_path)
    assert evaluation.class_names == ("ant", "bee", "cat")
    assert (evaluation.labels.tolist(), evaluation.predicted.tolist()) == ([0, 2], [2, 2])


def test_image_names_are_kept_and_relative_names_do_not_contain_the_data_root(tmp_path: Path):
    names = ["/data/ant/a, b.jpg", "/data/ant/\udcff.jpg", "/data2/x.jpg"]
    make_evaluation(tmp_path, [0, 0, 0], [0, 0, 0], images=names)
    evaluation = load_evaluation(tmp_path)
    assert list(evaluation.image_names) == names
    assert evaluation.relative_names() == ("ant/a, b.jpg", "ant/\udcff.jpg", "/data2/x.jpg")


def test_a_missing_evaluation_names_the_command_that_creates_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"predictions.csv is missing; create it with: python src/eval.py run='.* run'"):
        load_evaluation(tmp_path / "my run")
    assert eval_command("r", "val") == "python src/eval.py run=r split=val"


def test_a_run_whose_task_eval_refuses_gets_no_advice_to_evaluate_it(tmp_path: Path):
    (tmp_path / "provenance.json").write_text('{"commands": ["eval", "predict"]}')
    assert eval_command(tmp_path, "val") == f"python src/eval.py run={tmp_path} split=val"
    (tmp_path / "provenance.json").write_text('{"commands": []}')
    assert eval_command(tmp_path) == ""
    with pytest.raises(DataError, match="eval.py takes no run of this task; the result of its own test is in summary"):
        load_evaluation(tmp_path)


@pytest.mark.parametrize("commands", ["5", '"eval"', "null", '["eval", "$(touch x)"]', '{"a": ["eval"]}'])
def test_a_printed_command_contains_nothing_of_an_untrusted_provenance(tmp_path: Path, commands: str):
    text = f'{{"commands": {commands}, "trust": ["os]\' ; touch x #", 5]}}'
    (tmp_path / "provenance.json").write_text(text)
    assert eval_command(tmp_path) == f"python src/eval.py run={tmp_path}"


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_results_that_do_not_fit_the_present_checkpoint_are_refused_with_the_command(tmp_path: Path, digest: str):
    make_evaluation(tmp_path, [0], [0], model_sha256=digest)
    assert load_evaluation(tmp_path).labels.tolist() == [0]  # without checkpoints there is no other network
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"another checkpoint; renew it: python src/eval.py run=") as error:
        load_evaluation(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "image,true\n0,ant\n", "image,true,predicted,probability\n0,dog,ant,0.5\n"]
    + ["image,true,predicted,probability\n0,ant,ant,high\n", "image,true,predicted,probability\n"],
)
def test_damaged_predictions_are_named(content: str, tmp_path: Path):
    (make_evaluation(tmp_path, [0], [0]) / "predictions.csv").write_text(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/eval/test is damaged: .*; delete it and evaluate again: python"):
        load_evaluation(tmp_path)


def test_only_images_below_the_data_of_the_run_are_read(tmp_path: Path):
    run, data, private = tmp_path / "run", tmp_path / "data", tmp_path / "private.png"
    for file in (data / "a.png", data / "linked" / "a.png", private):
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "white").save(file)
    (data / "folder.png").mkdir()
    names = [data / "a.png", data / "linked" / ".." / "a.png", data / ".." / "private.png", private, "private.png"]
    make_evaluation(run, [0] * 6, [1] * 6, images=[*map(str, names), str(data / "folder.png")])
    for settings in ({"root": str(data)}, {"root": None, "list_file": str(data / "list.csv")}):
        (run / "config.yaml").write_text(yaml.safe_dump({"data": settings}))
        found = [load_image(load_evaluation(run), index, {}) for index in range(6)]
        assert [pixels is not None for pixels, _ in found] == [True, True, False, False, False, False]
        assert all(f"is not below {data}, data.root" in reason for _, reason in found[2:5])
        assert "it is not a regular file" in found[5][1]
    (run / "config.yaml").unlink()
    assert [load_image(load_evaluation(run), index, {})[0] for index in range(6)] == [None] * 6


def test_images_that_are_not_files_come_from_mistakes_npz(tmp_path: Path):
    folder = make_evaluation(tmp_path, [0, 0, 0], [1, 0, 1])
    assert saved_images(load_evaluation(tmp_path)) == {}
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(folder / "mistakes.npz", rows=[2, 0], images=images)
    saved = saved_images(load_evaluation(tmp_path))
    assert list(saved) == [2, 0]
    assert (saved[0] == images[1]).all()


def test_a_mistakes_npz_that_unpacks_to_more_than_an_evaluation_writes_is_refused(tmp_path: Path):
    folder = make_evaluation(tmp_path, [0], [1])
    np.savez_compressed(folder / "mistakes.npz", rows=[0], images=np.zeros((1, 6000, 6000, 3), np.uint8))
    assert (folder / "mistakes.npz").stat().st_size < 200_000
    with pytest.raises(DataError, match=r"mistakes.npz is damaged: it holds 108,000,\d+ bytes, more than 100,000,000"):
        saved_images(load_evaluation(tmp_path))


def test_a_mistakes_npz_that_claims_a_huge_array_is_refused(tmp_path: Path):
    folder = make_evaluation(tmp_path, [0], [1])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 1, 1, 3)})
    np.savez(folder / "mistakes.npz", rows=[0])
    with zipfile.ZipFile(folder / "mistakes.npz", "a") as file:
        file.writestr("images.npy", header.getvalue())
    with pytest.raises(DataError, match=r"mistakes.npz is damaged: "):
        saved_images(load_evaluation(tmp_path))


@pytest.mark.parametrize("arrays", [{"rows": [0]}, {"rows": [0, 1], "images": np.zeros((1, 4, 4, 3), np.uint8)}])
def test_a_damaged_mistakes_npz_is_named(arrays: dict, tmp_path: Path):
    folder = make_evaluation(tmp_path, [0], [1])
    np.savez(folder / "mistakes.npz", **arrays)
    with pytest.raises(DataError, match=r"mistakes.npz is damaged"):
        saved_images(load_evaluation(tmp_path))
    (folder / "mistakes.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(DataError, match=r"mistakes.npz is damaged"):
        saved_images(load_evaluation(tmp_path))
