"""Bodies that are too large or too slow, too many requests, and bytes that are no HTTP: each gets its answer."""

import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from onnx_files import write_channel_means
from served import Server, colored

pytestmark = pytest.mark.slow

JPEG = colored(250, 20, 20, "JPEG")
BODY_TIMEOUT_S = 1
HEAD = b"POST /predict?secret=1 HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    file = write_channel_means(folder / "colors.onnx")
    settings = (f"model={file}", "max_body_mb=1", f"body_timeout_s={BODY_TIMEOUT_S}", "max_requests=40")
    server = Server(*settings, folder=folder)
    yield server
    assert server.stop() == 0


def connect(server: Server, *parts: bytes) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    for part in parts:
        connection.sendall(part)
    return connection


def read_answer(connection: socket.socket) -> tuple[int, dict]:
    """Read until the server closes the connection; return the status and the content."""
    content = b""
    while part := connection.recv(65536):
        content += part
    connection.close()
    head, _, body = content.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), content
    return int(head.split()[1]), json.loads(body)["error"]


def resident_mb(server: Server) -> float:
    return server.processes()[0].memory_info().rss / 2**20


def test_a_body_above_the_limit_is_refused_before_it_is_sent(server: Server):
    connection = connect(server, HEAD + b"Content-Length: 1000000000\r\n\r\n")
    status, error = read_answer(connection)
    assert (status, error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_sends_on_gets_the_answer_and_costs_no_memory(server: Server, is_chunked: bool):
    before_mb = resident_mb(server)

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(2**20)

    headers = {} if is_chunked else {"Content-Length": str(30 * 2**20)}
    response = httpx.post(f"{server.url}/predict", content=chunks(), headers=headers, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert resident_mb(server) < before_mb + 20


def test_bodies_of_requests_that_need_none_are_not_kept(server: Server):
    before_mb = resident_mb(server)
    head = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    connections = [connect(server, head, bytes(999_000)) for _ in range(30)]
    assert all(connection.recv(65536).startswith(b"HTTP/1.1 200") for connection in connections)
    assert resident_mb(server) < before_mb + 10
    for connection in connections:
        connection.close()


def test_a_slow_body_is_refused_in_time(server: Server):
    start_s = time.monotonic()
    status, error = read_answer(connect(server, HEAD + b"Content-Length: 100\r\n\r\n", b"x"))
    assert time.monotonic() - start_s < BODY_TIMEOUT_S + 5
    assert (status, error["code"]) == (408, "timeout")


def test_stalled_clients_do_not_stop_the_others(server: Server):
    stalled = [connect(server, HEAD + b"Content-Length: 100\r\n\r\n") for _ in range(32)]
    silent = [connect(server, b"POST /pre") for _ in range(32)]
    assert server.post(JPEG).json()["class"] == "red"
    assert httpx.get(f"{server.url}/health").status_code == 200
    for connection in stalled:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    for connection in silent:  # closed without an answer
        assert connection.recv(65536) == b""
    for connection in stalled + silent:
        connection.close()


def test_a_client_that_does_not_read_its_answers_is_disconnected(server: Server):
    connection = connect(server)
    connection.setblocking(False)
    with pytest.raises(OSError, match=r"Connection reset|Broken pipe"):  # noqa: PT012
        for _ in range(200 * BODY_TIMEOUT_S):
            with suppress(BlockingIOError):
                connection.send(b"GET /page.js HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
            time.sleep(0.05)
    connection.close()


def test_connections_beyond_the_limit_of_open_files_are_closed_at_once(tmp_path: Path):
    file = write_channel_means(tmp_path / "colors.onnx")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (800, hard))  # inherited
    try:
        server = Server(f"model={file}", folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    idle = [connect(server) for _ in range(600)]
    assert idle[-1].recv(1) == b""
    for connection in idle:
        connection.close()
    assert server.post(JPEG).json()["class"] == "red"
    assert "Too many open files" not in server.output
    assert server.stop() == 0


def test_more_requests_than_allowed_are_refused_and_health_is_not(server: Server):
    stalled = [connect(server, HEAD + b"Content-Length: 100\r\n\r\n") for _ in range(40)]
    time.sleep(0.3)
    response = server.post(JPEG)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "busy")
    assert int(response.headers["retry-after"]) > 0
    assert httpx.get(f"{server.url}/health").status_code == 200
    for connection in stalled:
        connection.close()
    time.sleep(0.3)
    assert server.post(JPEG).status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),  # TLS
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 101,
        b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % "\u00e9".encode(),
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_in_the_one_shape(server: Server, request_bytes: bytes):
    status, error = read_answer(connect(server, request_bytes))
    assert (status, error["code"]) == (400, "bad_request")


@pytest.mark.parametrize(("start", "part"), [(b"0001;", b"a" * 65536), (b"0\r\n", b"a: b\r\n" * 10_000), (b"", b"")])
def test_a_body_with_much_beside_its_content_is_not_read_to_its_end(server: Server, start: bytes, part: bytes):
    connection = connect(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + start)
    with pytest.raises(OSError, match=r"Connection reset|Broken pipe"):  # noqa: PT012
        for _ in range(200):
            connection.sendall(part or b"1" + b" " * 60_000 + b"\r\na\r\n")
    connection.close()


def test_small_chunks_of_a_body_are_read(server: Server):
    response = httpx.post(f"{server.url}/predict", content=(JPEG[at : at + 8] for at in range(0, len(JPEG), 8)))
    assert response.json()["class"] == "red"


@pytest.mark.parametrize("is_split", [False, True])
def test_a_request_that_offers_another_protocol_is_answered_as_any_other(server: Server, is_split: bool):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    request = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(JPEG)  # as Java's HttpClient and curl --http2 send
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    parts = (request[:-9], request[-9:], JPEG[:9], JPEG[9:], last) if is_split else (request + JPEG + last,)
    connection, content = connect(server), b""
    for part in parts:
        connection.sendall(part)
        time.sleep(0.05)
    while part := connection.recv(65536):
        content += part
    connection.close()
    assert content.count(b"HTTP/1.1 200 OK") == 2
    assert b'"class": "red"' in content.partition(b'{"status": "ok"}')[0]


def test_fields_behind_a_body_are_no_fields_of_the_header(server: Server):
    size = b"%x\r\n" % len(JPEG)
    start = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + size + JPEG
    connection = connect(server, start + b"\r\n0\r\nContent-Type: multipart/form-data\r\n\r\n")
    content = b""
    while part := connection.recv(65536):
        content += part
    connection.close()
    assert b'"class": "red"' in content


def test_requests_are_answered_in_their_order_up_to_a_limit(server: Server):
    request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    connection = connect(server, request * 10)
    content = b""
    while content.count(b'{"status": "ok"}') < 10:
        content += connection.recv(65536)
    assert content.count(b"HTTP/1.1 200 OK") == 10
    connection.close()
    answer = b""
    connection = connect(server, request * 100)
    while part := connection.recv(65536):
        answer += part
    assert b"HTTP/1.1 400" in answer
    assert answer.count(b"HTTP/1.1 200 OK") < 100


def test_the_log_has_one_line_of_json_without_content_and_query(server: Server):
    server.post(JPEG, "/predict?top_k=1&name=private")
    line = json.loads(server.wait_for(r'.*"path": "/predict", "status": 200.*\n\Z'))
    assert (line["method"], line["bytes"], line["model"]) == ("POST", len(JPEG), "colors/v1")
    assert [*line] == ["time", "method", "path", "status", "ms", "bytes", "model"]
    assert "private" not in server.output


def test_requests_at_the_same_time_have_their_own_answers(server: Server):
    colors = {"red": (250, 9, 9), "green": (9, 250, 9), "blue": (9, 9, 250)}
    images = [(name, colored(*color)) for name, color in colors.items()] * 30
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda image: server.post(image[1]).json()["class"], images)
        assert [*answers] == [name for name, _ in images]
