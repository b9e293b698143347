"""Guard the service: read each body within limits, check the API key, log each answer, and send no plain-text error."""

import asyncio
import hmac
import json
import logging
import os
import time
import traceback
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imago.serve.errors import RequestError
from imago.serve.metrics import Metrics
from imago.serve.settings import Settings

log = logging.getLogger(__name__)

LOG_FIELDS = "imago.log"  # in the scope: what handlers add to the access log
HAS_KEY = "imago.has_key"  # in the scope: whether the request has the API key, or none is needed
OPEN_PATHS = ("/", "/page.css", "/page.js", "/health", "/ready")  # without a key
_DRAIN_S = 2.0  # a client that is still sending is listened to for this long after a refusal; our own choice
_MAX_LOGGED = 200  # characters of a path; our own choice
_CLIENT_CLOSED = 499  # in the log, as in nginx: the client has gone before it got an answer


class Guard:
    """ASGI middleware around everything else: an application sees complete bodies of allowed size only.

    Args:
        app: the application.
        settings: of the service.
        api_key: that requests must have; "" for none.
        metrics: which count answers.
    """

    def __init__(self, app: ASGIApp, settings: Settings, api_key: str, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._api_key = os.fsencode(api_key)  # as it was set
        self._max_body = settings.max_body_mb * 2**20
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start_s, entry = time.perf_counter(), {"status": _CLIENT_CLOSED, "bytes": 0}
        scope[LOG_FIELDS] = {}

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                if b"cache-control" not in dict(message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self._answer(scope, receive, send_and_note, entry)
        except RequestError as error:
            await _refuse(error, scope, receive, send_and_note)
        except _Disconnected:
            pass
        except (Exception, asyncio.CancelledError) as error:  # a bug; or the server waits no longer, and stops
            answer = RequestError("busy", "the service has been stopped; try again in a moment.")
            if not isinstance(error, asyncio.CancelledError):
                log.error("%s", "".join(traceback.format_exception(error)))
                answer = RequestError("internal_error", "the service has failed; its log has the reason.")
            if entry["status"] == _CLIENT_CLOSED:
                await answer.response()(scope, receive, send_and_note)
        finally:
            self._note(scope, entry, time.perf_counter() - start_s)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, entry: dict[str, Any]) -> None:
        self._check_key(scope)
        has_body = scope["method"] == "POST"  # no other body is read, so that it takes no memory
        if has_body and self._num_requests >= self._settings.max_requests:
            raise RequestError("busy", "too many requests at the same time; try again in a moment.")
        self._num_requests += has_body
        try:
            body = await self._read_body(scope, receive) if has_body else b""
            entry["bytes"] = len(body)
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive_body() -> Message:
                return next(messages, None) or await receive()

            await self._app(scope, receive_body, send)
        finally:
            self._num_requests -= has_body

    def _check_key(self, scope: Scope) -> None:
        if scope["path"] == "/admin/reload" and not self._api_key:
            raise RequestError("forbidden", "this needs a service with an API key: start it with IMAGO_API_KEY set.")
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._api_key)
        scope[HAS_KEY] = is_right or not self._api_key
        is_open = scope["path"] in OPEN_PATHS and scope["method"] != "POST"
        if not (is_open or scope[HAS_KEY]):
            raise RequestError("unauthorized", "the API key is missing or wrong; send Authorization: Bearer KEY.")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        length = Headers(scope=scope).get("content-length", "0")
        too_large = RequestError("body_too_large", f"more than {self._settings.max_body_mb} MB; send less at a time.")
        if length.isdecimal() and int(length) > self._max_body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            seconds = f"{self._settings.body_timeout_s:g} s"
            raise RequestError("timeout", f"the request was not complete after {seconds}; send it again.") from error

    def _note(self, scope: Scope, entry: dict[str, Any], seconds: float) -> None:
        """Count an answer, and log it without the query and the content."""
        known = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        self._metrics.requests.labels(known, entry["status"]).inc()
        if self._settings.access_log:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": scope["method"][:_MAX_LOGGED],
                "path": scope["path"][:_MAX_LOGGED],
                "status": entry["status"],
                "ms": round(1000 * seconds, 1),
                "bytes": entry["bytes"],
            }
            print(json.dumps(line | scope[LOG_FIELDS]), flush=True)


class _Disconnected(Exception):
    """The client has gone while it sent its request."""


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body has arrived, and read a while on: a connection that is closed at once loses the answer."""

    async def send_but_stay_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["more_body"] = True
        await send(message)

    await error.response({"Connection": "close"})(scope, receive, send_but_stay_open)
    try:
        async with asyncio.timeout(_DRAIN_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
