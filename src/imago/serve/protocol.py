"""HTTP/1.1 of uvicorn, with errors in the shape of all others, limits of connections, and a quick end."""

import asyncio
import os
import signal
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from imago.serve.errors import RequestError


class HttpProtocol(H11Protocol):
    """One connection.

    Attributes:
        silence_s: time in which the header of a request must be complete, or the client must read some of an answer;
            then the connection is closed.
        max_connections: further ones are closed at once: without free files, no decoder could be replaced.
    """

    silence_s = 15.0
    max_connections = 1000
    _watch: asyncio.TimerHandle | None = None

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

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        response = RequestError("bad_request", f"{msg.rstrip('.').lower()}; send HTTP/1.1.").response()
        headers = [*response.raw_headers, (b"x-content-type-options", b"nosniff"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
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
