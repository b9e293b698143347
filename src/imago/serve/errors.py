"""The one shape of errors of the service: `{"error": {"code": ..., "message": ...}}`, and their HTTP status."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

STATUS = {
    "bad_request": 400,
    "empty_file": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "unsupported_image": 415,
    "corrupt_image": 422,
    "invalid_parameter": 422,
    "internal_error": 500,  # a bug, which the log shows with its traceback
    "busy": 503,
    "not_ready": 503,
}
_RETRY_AFTER_S = 1  # our own choice


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        code: a key of `STATUS`.
        message: one sentence: what is wrong, and the way out.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status = code, STATUS[code]

    def content(self) -> dict[str, str]:
        """Return the code and the message, for JSON."""
        return {"code": self.code, "message": str(self)}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer to a request that has failed as a whole."""
        more = {"Retry-After": str(_RETRY_AFTER_S)} if self.status == 503 else {}
        more |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return json_response({"error": self.content()}, self.status, {**(headers or {}), **more})


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON in ASCII: names of files and classes may be invalid UTF-8, for which there are only escapes."""
    return Response(json.dumps(content, allow_nan=False), status, headers, media_type="application/json")
