"""HTTP/1.1 of uvicorn, with errors in the shape of all others, limits of connections, and a quick end."""

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from imago.serve.errors import RequestError

_MAX_HEAD = 2**16  # bytes of a request beside its content, and of the headers of all that wait; our own choice
_MAX_FIELDS = 100  # of a header, each of which takes some hundred bytes of memory; as in Apache
_MAX_PIPELINED = 16  # requests that a client sends on one connection without waiting for answers; our own choice


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        silence_s: time in which the header of a request must be complete, or the client must read some of an answer;
            then the connection is closed.
        max_connections: further ones are closed at once: without free files, no decoder could be replaced.
    """

    silence_s = 15.0
    max_connections = 1000
    _watch: asyncio.TimerHandle | None = None
    _num_overhead = 0  # bytes of the header, and of the body so far without its content: sizes of chunks, trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._check_silence(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch:
            self._watch.cancel()
        super().connection_lost(exc)

    def _check_silence(self, last_state: tuple[Any, int] | None) -> None:
        """Close the connection if since the last check no request has begun and no byte of an answer was read."""
        num_unread = self.transport.get_write_buffer_size()
        is_running = self.cycle is not None and not self.cycle.response_complete
        if (self.cycle, num_unread) == last_state and (num_unread or not is_running):
            self.transport.abort()
            return
        self._watch = self.loop.call_later(self.silence_s, self._check_silence, (self.cycle, num_unread))

    def data_received(self, data: bytes) -> None:
        self._num_overhead += len(data)
        self._received = data
        super().data_received(data)
        self._received = b""
        is_large = self._num_overhead > _MAX_HEAD or len(self.headers or ()) > _MAX_FIELDS
        if is_large and not self.transport.is_closing():
            self.send_400_response(f"its header has more than {_MAX_HEAD:,} bytes, or its chunks are too small")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests before the first answer")  # answered as a request that is not HTTP
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > _MAX_FIELDS:
            raise ValueError("too many fields")
        super().on_headers_complete()
        self.headers = []  # for trailers, which belong to no header and are not read

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() != b"CONNECT"

    def handle_websocket_upgrade(self) -> None:
        """Read a request again without its offer of another protocol: the parser would skip its body."""
        rest = self._received[sys.exception().args[0] :]  # type: ignore[union-attr]  # HttpParserUpgrade
        fields = [b"%b: %b\r\n" % one for one in self.scope["headers"] if one[0] not in (b"connection", b"upgrade")]
        start = self.parser.get_method() + b" " + self.url + f" HTTP/{self.parser.get_http_version()}\r\n".encode()
        self.parser = type(self.parser)(self)
        self.data_received(b"".join([start, *fields, b"\r\n", rest]))

    def on_body(self, body: bytes) -> None:
        self._num_overhead = max(0, self._num_overhead - 2 * len(body))  # sizes of chunks may be as long as the content
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_overhead = self._num_overhead if self.pipeline else 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        (self.headers or []).clear()  # now: the connection may stay in memory until the next garbage collection
        message = f"{msg.rstrip('.').lower()}; send HTTP/1.1 with at most {_MAX_FIELDS} fields."
        response = RequestError("bad_request", message).response()
        headers = [*response.raw_headers, (b"x-content-type-options", b"nosniff"), (b"connection", b"close")]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[400], *lines, b"\r\n", bytes(response.body)]))
        self.transport.close()


class Server(uvicorn.Server):
    """A server that prints its `message` when it is ready; a second Ctrl-C does not wait for running requests."""

    message = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.message, flush=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if sig == signal.SIGINT and self.should_exit:
            os._exit(0)
        super().handle_exit(sig, frame)
