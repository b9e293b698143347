"""Whether a server can be reached, within a time limit."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from imago.download import is_reachable


@pytest.fixture
def server_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_server_is_reachable_and_a_missing_page_is_not(server_url: str):
    assert is_reachable(server_url)
    assert not is_reachable(server_url + "no-such-file")


def test_a_server_that_does_not_respond_is_not_reachable_after_the_timeout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start_s = time.monotonic()
        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.05)
        assert time.monotonic() - start_s < 5
