"""HTTP/1.1 of uvicorn with two changes: errors in the shape of all others, and no connection without a request."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from imago.serve.errors import RequestError


class HttpProtocol(H11Protocol):
    """One connection.

    Attributes:
        silence_s: time in which the header of a request must be complete; then the connection is closed.
    """

    silence_s = 15.0
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._check_silence(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch:
            self._watch.cancel()
        super().connection_lost(exc)

    def _check_silence(self, last_cycle: Any) -> None:
        """Close the connection if no request has begun since the last check, and none is running."""
        is_running = self.cycle is not None and not self.cycle.response_complete
        if self._watch and self.cycle is last_cycle and not is_running:
            self.transport.close()
            return
        self._watch = self.loop.call_later(self.silence_s, self._check_silence, self.cycle)

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
