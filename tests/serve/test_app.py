"""The application answers as the contract says: predictions of the network itself, and each error in the one shape."""

import base64
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx_files import write_channel_means
from served import app_client, colored, encode
from starlette.testclient import TestClient

from imago.images import read_image, resize_and_crop
from imago.onnx_classifier import OnnxClassifier
from imago.serve.errors import STATUS

JPEG = colored(250, 20, 20, "JPEG")
BLUE = colored(20, 20, 250)
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_channel_means(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def client(file: Path) -> Iterator[TestClient]:
    with app_client(f"model={file}", "max_body_mb=1", "max_files=3", "max_pixels=1000000") as client:
        yield client


def error_of(response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert [*content] == ["error"]
    assert [*content["error"]] == ["code", "message"]
    message = content["error"]["message"]
    assert message
    assert "\n" not in message
    assert response.status_code == STATUS[content["error"]["code"]]
    return response.status_code, content["error"]["code"]


def test_a_prediction_is_that_of_the_network(client: TestClient, file: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    model = OnnxClassifier(file)
    square = resize_and_crop(pixels, model.preprocess)
    (expected,) = model.predict(square.transpose(2, 0, 1)[None])[1]
    answer = client.post("/predict?crop=true", content=encode(pixels)).json()
    assert {entry["class"]: np.float32(entry["probability"]) for entry in answer["top_k"]} == dict(
        zip(model.class_names, expected, strict=True)
    )
    probabilities = [entry["probability"] for entry in answer["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert (answer["class"], answer["confidence"]) == (answer["top_k"][0]["class"], probabilities[0])
    assert (answer["file"], answer["model"]) == (None, {"name": "colors", "version": "v1"})
    assert answer["time_ms"] > 0
    start, _, png = answer["crop"].partition(",")
    assert start == "data:image/png;base64"
    np.testing.assert_array_equal(read_image(base64.b64decode(png)), square)


def test_images_unlike_those_of_the_training_are_marked_if_the_file_has_a_detector(client: TestClient, file: Path):
    assert "unlike_training" not in client.post("/predict", content=JPEG).json()
    for cutoff, expected in ((0.9, [False, True]), (0.5, [False, False])):
        unit = np.eye(3).tolist()
        detector = {"cutoff": cutoff, "num_images": 50, "mean": [0, 0, 0], "whitening": unit, "directions": unit}
        marking = write_channel_means(file.with_name("marking.onnx"), unknown_detector=detector)
        gray = colored(99, 99, 99)
        with app_client(f"model={marking}") as marking_client:
            answers = [marking_client.post("/predict", content=content).json() for content in (JPEG, gray)]
        assert [answer["unlike_training"] for answer in answers] == expected


def test_top_k_limits_the_classes(client: TestClient):
    for top_k, count in ((1, 1), (2, 2), (1000, 3)):
        assert len(client.post(f"/predict?top_k={top_k}", content=JPEG).json()["top_k"]) == count
    assert "crop" not in client.post("/predict", content=JPEG).json()
    assert "crop" in client.post("/predict?crop=True", content=JPEG).json()


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_load_balancers_may_ask_with_head(client: TestClient, path: str):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/predict", "/models/colors/predict", "/models/colors/versions/v1/predict"])
def test_one_file_of_a_form_is_named(client: TestClient, path: str):
    answer = client.post(path, files={"any": ("a b.jpg", JPEG)}).json()
    assert (answer["file"], answer["class"]) == ("a b.jpg", "red")


def test_several_files_have_a_prediction_or_an_error_each(client: TestClient):
    files = [("x", ("a", JPEG)), ("x", ("b", b"")), ("y", ("c", BLUE))]
    response = client.post("/predict", files=files)
    first, second, third = response.json()["predictions"]
    assert (response.status_code, first["class"], third["class"]) == (200, "red", "blue")
    assert (second["file"], second["error"]["code"]) == ("b", "empty_file")


def test_if_all_files_fail_the_status_is_that_of_the_first(client: TestClient):
    response = client.post("/predict", files=[("x", ("a", b"<html>")), ("x", ("b", b""))])
    assert (response.status_code, len(response.json()["predictions"])) == (415, 2)


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "expected"),
    [
        ("POST", "/predict", b"", {}, (400, "empty_file")),
        ("POST", "/predict", b"<html>", {}, (415, "unsupported_image")),
        ("POST", "/predict", JPEG[:300], {}, (422, "corrupt_image")),
        ("POST", "/predict", encode(np.zeros((1001, 1000, 3), np.uint8)), {}, (413, "too_many_pixels")),
        ("POST", "/predict", bytes(2**20 + 1), {}, (413, "body_too_large")),
        ("POST", "/predict?top_k=0", JPEG, {}, (422, "invalid_parameter")),
        ("POST", "/predict?top_k=x", JPEG, {}, (422, "invalid_parameter")),
        ("POST", "/predict?crop=maybe", JPEG, {}, (422, "invalid_parameter")),
        ("POST", "/predict", b"--b--\r\n", FORM, (400, "bad_request")),
        ("POST", "/predict", b"--b\r\nbroken", FORM, (400, "bad_request")),
        ("POST", "/predict", b"x", {"Content-Type": "multipart/form-data"}, (400, "bad_request")),
        (
            "POST",
            "/predict",
            b"x",
            {"Content-Type": "multipart/form-data; boundary=b; charset=rot13"},
            (400, "bad_request"),
        ),
        ("POST", "/models/x/predict", JPEG, {}, (404, "not_found")),
        ("POST", "/models/colors/versions/v2/predict", JPEG, {}, (404, "not_found")),
        ("GET", "/predict", b"", {}, (405, "method_not_allowed")),
        ("POST", "/predict/", JPEG, {}, (404, "not_found")),
        ("GET", "/docs", b"", {}, (404, "not_found")),
        ("POST", "/admin/reload", b"", {}, (403, "forbidden")),
    ],
)
def test_every_error_has_its_status_and_code(client: TestClient, method, path, content, headers, expected):
    assert error_of(client.request(method, path, content=content, headers=headers)) == expected


def test_more_files_than_allowed_are_refused(client: TestClient):
    files = [("x", (str(index), JPEG)) for index in range(4)]
    assert error_of(client.post("/predict", files=files)) == (400, "bad_request")
    assert error_of(client.post("/predict", data={"text": "x"}, files={})) == (415, "unsupported_image")


def test_models_and_limits_are_listed(client: TestClient, file: Path):
    content = client.get("/models").json()
    (model,) = content["models"]
    (version,) = model["versions"]
    assert (model["name"], model["default"], version["version"], version["weight"]) == ("colors", True, "v1", 1.0)
    assert (version["ready"], version["reason"], version["precision"]) == (True, None, "fp32")
    assert (version["class_names"], version["run_id"]) == (["red", "green", "blue"], "1")
    assert version["preprocess"] == OnnxClassifier(file).preprocess.to_dict()
    assert version["metrics"] == {"val": {"acc": 0.5}}
    limits = content["limits"]
    assert (limits["max_body_mb"], limits["max_pixels"], limits["threshold"]) == (1, 1_000_000, 0)
    assert {"JPEG", "PNG"} < {*limits["formats"]}


def test_health_and_readiness(client: TestClient):
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["models"] == {"colors": {"v1": {"ready": True, "reason": None}}}


def test_metrics_count_answers_predictions_and_refused_images(file: Path):
    with app_client(f"model={file}") as client:
        client.post("/predict", content=JPEG)
        client.post("/predict", content=b"")
        lines = client.get("/metrics").text.splitlines()
    labels = 'model="colors",version="v1"'
    for line in (
        f"imago_predictions_total{{{labels}}} 1.0",
        'imago_requests_total{method="POST",status="200"} 1.0',
        'imago_requests_total{method="POST",status="400"} 1.0',
        'imago_refused_images_total{code="empty_file"} 1.0',
        f"imago_prediction_seconds_count{{{labels}}} 1.0",
        f'imago_batch_size_bucket{{le="1.0",{labels}}} 1.0',
        "imago_replaced_decoders 0.0",
    ):
        assert line in lines


def test_a_class_below_the_threshold_is_null(file: Path):
    with app_client(f"model={file}", "threshold=0.5") as client:
        gray = client.post("/predict", content=colored(99, 99, 99)).json()
        assert (gray["class"], gray["top_k"][0]["class"]) == (None, "red")
        assert client.post("/predict", content=JPEG).json()["class"] == "red"


def test_names_that_are_not_valid_utf8_are_escaped(tmp_path: Path):
    names = ("Käfer\udcff", "<b>", "蜂")
    file = write_channel_means(tmp_path / "colors.onnx", names=names)
    with app_client(f"model={file}") as client:
        for response in (client.post("/predict", content=JPEG), client.get("/models")):
            assert response.status_code == 200
            assert "K\\u00e4fer\\udcff" in response.text
        body = b'--b\r\nContent-Disposition: form-data; name="x"; filename="\xff\xfe"\r\n\r\n' + JPEG + b"\r\n--b--\r\n"
        assert client.post("/predict", content=body, headers=FORM).status_code == 200


@pytest.mark.parametrize("fault", [{"scale": 3e38}, {"scale": 0, "head": "Reciprocal"}])
def test_outputs_that_are_not_finite_are_an_error(fault: dict, tmp_path: Path):
    file = write_channel_means(tmp_path / "colors.onnx", **fault)
    with app_client(f"model={file}") as client:
        assert error_of(client.post("/predict", content=JPEG)) == (503, "not_ready")
        assert "Retry-After" in client.post("/predict", content=JPEG).headers


def test_a_file_of_a_stranger_is_described_in_json(tmp_path: Path):
    file = write_channel_means(tmp_path / "\udcff.onnx", precision=math.nan, metrics={"val": -math.inf})
    with app_client(f"model={file}") as client:
        (model,) = client.get("/models").json()["models"]
        assert (model["name"], model["versions"][0]["precision"]) == ("\\udcff", None)
        assert client.post(f"/models/{model['name']}/predict", content=JPEG).status_code == 200
        assert "udcff" in client.get("/metrics").text


def test_answers_are_not_stored_or_sniffed(client: TestClient):
    for response in (client.post("/predict", content=JPEG), client.get("/nothing"), client.get("/metrics")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


def test_openapi_has_an_example_of_each_answer(client: TestClient):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/models", "/health", "/ready", "/metrics", "/admin/reload"} < {*paths}
    for path, methods in paths.items():
        for answer in (answer for method in methods.values() for answer in method["responses"].values()):
            examples = [content.get("example") for content in answer.get("content", {}).values()]
            assert path == "/metrics" or all(examples), path
    expected = client.post("/predict", content=JPEG).json()
    example = paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert [name for name in example if name != "unlike_training"] == [*expected]  # of a file with a detector only


def test_a_key_is_needed_where_one_is_set(file: Path):
    with app_client(f"model={file}", api_key="sesame") as client:
        for path in ("/models", "/metrics", "/openapi.json"):
            assert error_of(client.get(path)) == (401, "unauthorized")
            assert client.get(path, headers={"Authorization": "Bearer sesame"}).status_code == 200
        for header in ("Bearer wrong", "sesame", "Bearer", "Basic sesame", "Bearer s\xe9same".encode("latin-1")):
            assert error_of(client.post("/predict", content=JPEG, headers={"Authorization": header}))[0] == 401
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        assert client.get("/ready").json()["models"] == {"colors": {"v1": {"ready": True, "reason": None}}}
        Path(file).rename(file.with_suffix(".gone"))
        headers = {"Authorization": "Bearer sesame"}
        assert client.post("/admin/reload", headers=headers).status_code == 503
        assert "colors.onnx" in client.get("/ready", headers=headers).text
        for wrong in ({}, {"Authorization": "Bearer wrong"}):
            assert "colors.onnx" not in client.get("/ready", headers=wrong).text
        file.with_suffix(".gone").rename(file)
        assert error_of(client.post("/health"))[0] == 401  # its body would take one of `max_requests`
        assert client.post("/admin/reload", headers={"Authorization": "Bearer sesame"}).json()["ready"]


def test_a_key_may_be_of_any_letters(file: Path):
    with app_client(f"model={file}", api_key="Schl\xfcssel") as client:
        for key, status in (("Schl\xfcssel", 200), ("Schlussel", 401)):
            assert client.get("/models", headers={"Authorization": f"Bearer {key}".encode()}).status_code == status


def test_a_bug_is_logged_with_its_traceback_and_answered_in_the_one_shape(file: Path, caplog: pytest.LogCaptureFixture):
    with app_client(f"model={file}") as client:
        client.app.add_api_route("/bug", lambda: 1 / 0)
        assert error_of(client.get("/bug")) == (500, "internal_error")
        assert "ZeroDivisionError: division by zero" in caplog.text
        assert client.get("/health").status_code == 200
