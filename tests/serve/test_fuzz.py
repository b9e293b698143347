"""No image and no request, however damaged, gets status 500, plain text, or an answer that is not in the schema."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from onnx_files import write_channel_means
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import Server, app_client, encode
from starlette.testclient import TestClient

from imago.serve.errors import STATUS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
TYPES = ("multipart/form-data; boundary=b", "multipart/form-data", "image/png", "", "application/json", "x" * 300)
FORM = b'--b\r\nContent-Disposition: form-data; name="x"; filename="a.png"\r\nX-Y: z\r\n\r\n%s\r\n--b--\r\n'
PATHS = ("/predict", "/models/colors/predict", "/models/colors/versions/v1/predict", "/models/x/predict", "/", "/é%00")
QUERIES = ("", "?top_k=2", "?top_k=-1", "?top_k=99999999999999999999", "?crop=true", "?crop=%ff", "?" + "a" * 999)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    file = write_channel_means(tmp_path_factory.mktemp("model") / "colors.onnx")
    with app_client(f"model={file}", "max_body_mb=1", "access_log=false") as client:
        yield client


def originals() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return [encode(pixels, format) for format in FORMATS] + [encode(pixels[..., 0]), encode(pixels, "GIF")[:-9]]


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Change, cut, repeat or insert some bytes."""
    content = bytearray(data)
    for _ in range(generator.integers(1, 6)):
        start = int(generator.integers(0, max(1, min(len(content), int(generator.choice([40, 10**6]))))))
        stop = start + int(generator.integers(1, 9))
        kind = generator.integers(5)
        if kind == 0:
            content[start:stop] = generator.bytes(stop - start)
        elif kind == 1:
            content[start:stop] = b"\xff" * (stop - start)
        elif kind == 2:
            del content[start:stop]
        elif kind == 3:
            content[start:start] = content[start : start + 30]
        else:
            content = content[: max(start, 1)]
    return bytes(content)


def check(response) -> str:
    """Check an answer; return its code, or ok."""
    assert response.status_code != 500, response.text
    if response.headers["content-type"].startswith("text/html"):
        return "page"
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    if response.status_code == 200:
        assert 0 <= content["confidence"] <= 1
        return "ok"
    code = content["error"]["code"]
    assert response.status_code == STATUS[code]
    return code


def send_images(client: TestClient, count: int, seed: int) -> Counter:
    generator, images = np.random.default_rng(seed), originals()
    answers = (
        client.post("/predict", content=mutate(images[index % len(images)], generator)) for index in range(count)
    )
    return Counter(map(check, answers))


def send_requests(client: TestClient, count: int, seed: int) -> Counter:
    generator, images = np.random.default_rng(seed), originals()
    codes: Counter = Counter()
    for index in range(count):
        content = FORM % images[index % len(images)]
        content = mutate(content, generator) if generator.random() < 0.8 else content
        method = str(generator.choice(["POST", "POST", "POST", "GET", "PUT", "HACK"]))
        path = str(generator.choice(PATHS, p=[0.7, 0.06, 0.06, 0.06, 0.06, 0.06])) + str(generator.choice(QUERIES))
        headers = {"Content-Type": str(generator.choice(TYPES, p=[0.75, 0.05, 0.05, 0.05, 0.05, 0.05]))}
        codes[check(client.request(method, path, content=content, headers=headers))] += 1
    return codes


@pytest.mark.slow
def test_mutated_images_get_a_prediction_or_a_client_error(client: TestClient):
    codes = send_images(client, 400, seed=0)
    assert {*codes} <= {"ok", "corrupt_image", "unsupported_image", "too_many_pixels", "empty_file"}
    assert min(codes["ok"], codes["corrupt_image"], codes["unsupported_image"]) > 10
    assert client.service.decoders.num_replaced == 0


@pytest.mark.slow
def test_mutated_requests_get_an_answer_in_the_one_shape(client: TestClient):
    codes = send_requests(client, 400, seed=1)
    assert min(codes[code] for code in ("ok", "bad_request", "invalid_parameter", "method_not_allowed")) > 5


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_six_thousand_mutants(client: TestClient):
    codes = send_images(client, 3000, seed=2) + send_requests(client, 3000, seed=3)
    assert sum(codes.values()) == 6000
    assert codes["busy"] == 0


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("served")
    server = Server(f"model={write_channel_means(folder / 'colors.onnx')}", "max_requests=8", folder=folder)
    yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert server.stop() == 0


@pytest.mark.slow
def test_schemathesis_finds_no_answer_outside_the_schema(api_schema: Any):
    operations = [operation.ok() for operation in api_schema.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True)
        def run(case: Any) -> None:
            case.call_and_validate(excluded_checks=[positive_data_acceptance])  # random bytes are no images

        run()
