"""The reader of exported files returns the outputs of the file, and refuses an untrusted file with one line.

The files are built by hand, without torch: a network that returns the mean of each color channel, for 3 classes.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from imago import onnx_classifier
from imago.errors import DataError
from imago.images import Preprocess
from imago.onnx_classifier import OnnxClassifier, pack_metadata

SIZE = 4
PREPROCESS = Preprocess(SIZE, 5, "center", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
METADATA: dict[str, Any] = {
    "class_names": ["ant", "bee", "Käfer\udcff"],  # the last one is not valid UTF-8
    "preprocess": PREPROCESS.to_dict(),
    "calibration_temperature": 1.0,
    "run_id": "123",
    "metrics": {"val": {"acc": 0.5, "num_images": 10}},
    "versions": {"torch": "2.15.0"},
}


def build_model(batch: int | str = "N") -> onnx.ModelProto:
    """Logits are the channel means in 0 .. 255."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "one"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "channel_means",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, pack_metadata(METADATA))
    return model


def save(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


SETS = {"temperature": 1.5, "thresholds": {"90": 0.25}, "num_images": 40}


def test_prediction_sets_are_optional_metadata(tmp_path: Path):
    model = build_model()
    assert OnnxClassifier(save(model, tmp_path)).prediction_sets is None
    helper.set_model_props(model, pack_metadata(METADATA | {"prediction_sets": SETS}))
    sets = OnnxClassifier(save(model, tmp_path)).prediction_sets
    assert asdict(sets) == SETS
    probabilities = np.array([[0.3, 0.3, 0.4], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
    members = sets.members(1.5 * np.log(probabilities))["90"]
    assert members.tolist() == [[True, True, True], [True, False, False], [False, False, True]]


DETECTOR = {"cutoff": 0.9, "num_images": 40, "mean": [0.0] * 3, "whitening": np.eye(3).tolist()}
DETECTOR |= {"directions": np.eye(3).tolist()}


def test_the_detector_of_unknown_images_is_optional_metadata(tmp_path: Path):
    model = build_model()
    assert OnnxClassifier(save(model, tmp_path)).unknown_detector is None
    helper.set_model_props(model, pack_metadata(METADATA | {"unknown_detector": DETECTOR}))
    detector = OnnxClassifier(save(model, tmp_path)).unknown_detector
    assert detector.to_dict() == DETECTOR
    assert detector.scores(np.array([[5, 0, 0], [3, 4, 0]])) == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("detector", [{}, 3, "x", DETECTOR | {"mean": [0, 0]}, DETECTOR | {"cutoff": 1e999}])
def test_a_damaged_detector_is_refused(tmp_path: Path, detector: object):
    model = build_model()
    helper.set_model_props(model, pack_metadata(METADATA | {"unknown_detector": detector}))
    with pytest.raises(DataError, match="invalid metadata"):
        OnnxClassifier(save(model, tmp_path))


@pytest.mark.parametrize("sets", [{}, 3, "x", SETS | {"num_images": 1}, SETS | {"thresholds": {"90": 1e999}}])
def test_damaged_prediction_sets_are_refused(tmp_path: Path, sets: object):
    model = build_model()
    helper.set_model_props(model, pack_metadata(METADATA | {"prediction_sets": sets}))
    with pytest.raises(DataError, match=r"model.onnx has invalid metadata \(.*\); export it again."):
        OnnxClassifier(save(model, tmp_path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(build_model(), tmp_path)


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def change_metadata(**changes: str | None) -> onnx.ModelProto:
    model = build_model()
    texts = pack_metadata(METADATA) | changes
    del model.metadata_props[:]
    helper.set_model_props(model, {key: text for key, text in texts.items() if text is not None})
    return model


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logits_and_probabilities_are_the_graphs(path: Path, count: int):
    images = samples(count)
    model = OnnxClassifier(path)
    logits, probabilities = model.predict(images)
    np.testing.assert_allclose(logits, images.mean(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), np.ones(count), rtol=1e-6)
    assert logits.dtype == probabilities.dtype == np.float32


def test_metadata_are_read_as_they_were_written(path: Path):
    model = OnnxClassifier(path)
    assert model.metadata == METADATA | {"schema": 1}
    assert model.class_names == tuple(METADATA["class_names"])
    assert model.preprocess == PREPROCESS


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (samples(2)[0], r"got uint8 \(3, 4, 4\)"),
        (samples(2)[:, :1], r"got uint8 \(2, 1, 4, 4\)"),
        (samples(2)[..., :3], r"got uint8 \(2, 3, 4, 3\)"),
        (samples(2).transpose(0, 2, 3, 1), r"got uint8 \(2, 4, 4, 3\)"),
        (samples(2).astype(np.float32), r"got float32 \(2, 3, 4, 4\)"),
    ],
    ids=["no batch", "gray", "not square", "channels last", "float"],
)
def test_images_of_another_shape_or_type_are_refused(path: Path, images: np.ndarray, got: str):
    with pytest.raises(ValueError, match=r"images of uint8 \(N, 3, 4, 4\), " + got):
        OnnxClassifier(path).predict(images)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        OnnxClassifier(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory; export one with python src/export.py run=RUN"),
        (b"", "is truncated or not an ONNX file (0 bytes)"),
        (b"not an onnx file at all, but some text\n" * 9, "is truncated or not an ONNX file"),
        (b"PK\x03\x04" + bytes(200), "not an ONNX file"),
    ],
    ids=["missing", "empty", "text", "zip"],
)
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes | None, reason: str):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    assert reason in refusal(path)


def test_a_file_cut_off_anywhere_is_refused(path: Path):
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": None}, "was not exported by this project (no schema in its metadata)"),
        ({"class_names": None}, "has invalid metadata ('class_names')"),
        ({"schema": "2"}, "schema is 2, this version of imago reads 1"),
        ({"class_names": "[1, 2, 3]"}, "class_names is not a list of at least two names"),
        ({"class_names": '["one"]'}, "class_names is not a list of at least two names"),
        ({"class_names": "{"}, "has invalid metadata"),
        ({"class_names": "[" * 100_000}, "has invalid metadata"),
        ({"class_names": '["a", "b"]'}, "but its metadata expects"),
        ({"preprocess": "{}"}, "has invalid metadata"),
        ({"preprocess": json.dumps(PREPROCESS.to_dict() | {"size": "4"})}, "has invalid metadata"),
        ({"preprocess": json.dumps(PREPROCESS.to_dict() | {"resize": 3})}, "has invalid metadata"),
        ({"preprocess": json.dumps(PREPROCESS.to_dict() | {"size": 5})}, "but its metadata expects"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:20],
)
def test_missing_or_wrong_metadata_are_refused(tmp_path: Path, changes: dict[str, str | None], reason: str):
    assert reason in refusal(save(change_metadata(**changes), tmp_path))


def make_external(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def in_initializer(model: onnx.ModelProto) -> None:
    make_external(model.graph.initializer[0])


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=numpy_helper.from_array(np.float32(1))))
    make_external(model.graph.node[-1].attribute[0].t)


def in_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(np.float32(1), "hidden")])
    make_external(inner.initializer[0])
    model.graph.node.append(helper.make_node("If", ["flag"], ["more"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize("hide", [in_initializer, in_constant, in_branch])
def test_weights_in_another_file_are_refused_anywhere_in_the_graph(tmp_path: Path, hide: Callable):
    model = build_model()
    hide(model)
    assert "keeps weights in another file ('/etc/hostname'), which is refused" in refusal(save(model, tmp_path))


def test_a_file_for_one_batch_size_only_is_refused(tmp_path: Path):
    assert "takes batches of one fixed size only" in refusal(save(build_model(batch=2), tmp_path))


def test_a_graph_that_onnxruntime_cannot_run_is_refused(tmp_path: Path):
    model = build_model()
    model.graph.node[1].op_type = "Gather"
    assert "cannot be run by onnxruntime" in refusal(save(model, tmp_path))


def test_a_graph_that_fails_while_it_runs_is_one_line(tmp_path: Path):
    model = build_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3 * SIZE * SIZE]), "shape"))
    model.graph.node.insert(1, helper.make_node("Reshape", ["floats", "shape"], ["pairs"]))
    classifier = OnnxClassifier(save(model, tmp_path))
    classifier.predict(samples(2))
    with pytest.raises(DataError, match=r"model\.onnx fails for 3 images \(.*\); export one with [^\n]*$"):
        classifier.predict(samples(3))


def test_a_graph_that_returns_fewer_rows_than_images_is_one_line(tmp_path: Path):
    model = build_model()
    node = next(node for node in model.graph.node if "probabilities" in node.output)
    node.output[0] = "all_rows"
    mean = helper.make_node("ReduceMean", ["all_rows", "axis"], ["probabilities"], keepdims=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    model.graph.node.append(mean)
    classifier = OnnxClassifier(save(model, tmp_path))
    classifier.predict(samples(1))
    with pytest.raises(DataError, match=r"model\.onnx returns 3 rows of logits and 1 of probabilities for 3 images; "):
        classifier.predict(samples(3))


def run_other_graph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["floats"], ["out"])], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["flag"], ["more"], then_branch=inner, else_branch=inner))


def allocate(model: onnx.ModelProto, side: int = 2**20) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([side, side]), "sides"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["sides"], ["more"]))


def allocate_by_an_input(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["images"], ["more"]))


def use_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.example"


def add_sparse_tensor(model: onnx.ModelProto) -> None:
    values, indices = numpy_helper.from_array(np.float32([1]), "sparse"), numpy_helper.from_array(np.array([0]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def add_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], model.opset_import))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (run_other_graph, "If"),
        (allocate, "ConstantOfShape"),
        (allocate_by_an_input, "ConstantOfShape"),
        (use_another_domain, "com.example.Mul"),
        (add_sparse_tensor, "SparseTensorProto"),
        (add_function, "FunctionProto"),
    ],
)
def test_parts_that_no_export_has_are_refused_by_name(tmp_path: Path, change: Callable, name: str):
    model = build_model()
    change(model)
    assert f"has parts that no export of this project has: {name};" in refusal(save(model, tmp_path))


def test_a_small_constant_of_fixed_shape_is_accepted(tmp_path: Path):
    model = build_model()
    allocate(model, side=56)  # as in the windows of Swin
    assert OnnxClassifier(save(model, tmp_path)).predict(samples(1))[0].shape == (1, 3)


@pytest.mark.parametrize("dims", [[2**40], [-1, -1], [0], [2, 2]])
def test_weights_of_another_size_than_their_data_are_refused(tmp_path: Path, dims: list[int]):
    model = build_model()
    model.graph.initializer[0].dims[:] = dims
    assert f"'one' has not {dims} values" in refusal(save(model, tmp_path))


def test_a_changed_file_is_refused_by_its_digest_wherever_a_bit_differs(path: Path):
    content = onnx_classifier.add_digest(path.read_bytes())
    path.write_bytes(content)
    model = OnnxClassifier(path)
    assert model.metadata["digest"] == hashlib.sha256(save(build_model(), path.parent).read_bytes()).hexdigest()
    expected = model.predict(samples(3))
    num_accepted = 0
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 << index % 8
        path.write_bytes(flipped)
        with contextlib.suppress(DataError):
            np.testing.assert_array_equal(OnnxClassifier(path).predict(samples(3)), expected)
            num_accepted += 1  # a letter of the word "digest" itself
    assert num_accepted <= len("digest")


def test_a_file_that_onnx_has_read_and_written_again_keeps_its_digest(path: Path):
    path.write_bytes(onnx_classifier.add_digest(path.read_bytes()))
    onnx.save(onnx.load(path), path)
    assert "digest" in OnnxClassifier(path).metadata


def test_a_digest_that_is_not_the_last_entry_is_refused(path: Path):
    content = onnx_classifier.add_digest(path.read_bytes())
    for more in (onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key="x", value="1")]), build_model()):
        path.write_bytes(content + more.SerializeToString())
        with pytest.raises(DataError, match="its digest does not match"):
            OnnxClassifier(path)


def test_reading_a_file_loads_neither_torch_nor_lightning_nor_hydra(path: Path, command: Callable):
    code = (
        "import sys; sys.path.insert(0, 'src')\n"
        "sys.modules.update(torch=None, lightning=None, hydra=None, omegaconf=None)\n"
        "from pathlib import Path; import numpy as np; from imago.onnx_classifier import OnnxClassifier\n"
        f"print(OnnxClassifier(Path({str(path)!r})).predict(np.zeros((1, 3, {SIZE}, {SIZE}), np.uint8))[0].shape)"
    )
    done = command("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 3)\n", "")


def test_names_of_outputs_and_metadata_stay_the_same():
    assert (onnx_classifier.INPUT, onnx_classifier.LOGITS, onnx_classifier.PROBABILITIES) == (
        "images",
        "logits",
        "probabilities",
    )
    assert pack_metadata({"run_id": "a b", "class_names": ["x"]}) == {
        "run_id": "a b",
        "class_names": '["x"]',
        "schema": "1",
    }
