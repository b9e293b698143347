"""Describe requests and answers for /openapi.json, with examples."""

import re
from typing import Any

from imago.serve.errors import STATUS

DEFAULT_TOP_K = 5
MAX_TOP_K = 1000
PREDICTION_PATHS = {
    "/predict": "Classify images with the first model.",
    "/models/{name}/predict": "Classify images with a model; its versions share the requests by their weights.",
    "/models/{name}/versions/{version}/predict": "Classify images with one version of a model.",
}

_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"enum": sorted(STATUS)}, "message": _TEXT},
        }
    },
}
_MESSAGES = {
    "bad_request": "the form has no file; send one or more images as file parts.",
    "unauthorized": "the API key is missing or wrong; send Authorization: Bearer KEY.",
    "forbidden": "this needs a service with an API key: start it with IMAGO_API_KEY set.",
    "not_found": "there is no model of this name; GET /models lists them.",
    "timeout": "the request was not complete after 15 s; send it again.",
    "body_too_large": "more than 25 MB; send less at a time.",
    "unsupported_image": "the file is not an image (starts with b'<html>'); expected JPEG, PNG, WebP, BMP, ...",
    "corrupt_image": "the file is damaged: it is truncated; delete it or copy it again.",
    "busy": "too many requests at the same time; try again in a moment.",
}
_PREDICTION = {
    "file": "a.jpg",
    "class": "ants",
    "confidence": 0.97,
    "top_k": [{"class": "ants", "probability": 0.97}, {"class": "bees", "probability": 0.03}],
    "sets": {"90": ["ants"], "95": ["ants", "bees"]},
    "unlike_training": False,
    "model": {"name": "insects", "version": "v1"},
    "time_ms": 12.3,
}
_VERSION = {
    "version": "v1",
    "ready": True,
    "reason": None,
    "weight": 1.0,
    "class_names": ["ants", "bees"],
    "preprocess": {"size": 224, "resize": 256, "crop": "center"},
    "run_id": "2026-11-29_06-32-23-462162",
    "metrics": {"val": {"acc": 0.95}},
    "precision": "fp32",
}
_LIMITS = {"max_body_mb": 25, "max_pixels": 60_000_000, "max_files": 32, "threshold": 0.0, "formats": ["JPEG", "PNG"]}
_READY = {"ready": True, "reason": None, "models": {"insects": {"v1": {"ready": True, "reason": None}}}}


def _json(description: str, example: Any, schema: Any = None) -> dict[str, Any]:
    schema = schema or {"type": "object", "required": [key for key in example if key != "file"]}
    return {"description": description, "content": {"application/json": {"schema": schema, "example": example}}}


# By status, for `responses` of a route.
ERRORS: dict[int | str, Any] = {
    STATUS[code]: _json(code.replace("_", " "), {"error": {"code": code, "message": message}}, _ERROR)
    for code, message in _MESSAGES.items()
}
_SEVERAL = {"type": "object", "required": ["predictions"]}
_ONE = {"type": "object", "required": [key for key in _PREDICTION if key != "unlike_training"]}
EXAMPLES: dict[str, dict[int | str, Any]] = {
    "predict": {
        200: _json('One prediction; of several images {"predictions": [...]}', _PREDICTION, {"anyOf": [_ONE, _SEVERAL]})
    },
    "models": {
        200: _json(
            "All models", {"models": [{"name": "insects", "default": True, "versions": [_VERSION]}], "limits": _LIMITS}
        )
    },
    "health": {200: _json("The process runs", {"status": "ok"})},
    "ready": {200: _json("Ready", _READY), 503: _json("Not ready", _READY | {"ready": False})},
    "metrics": {200: {"description": "Prometheus", "content": {"text/plain": {"schema": _TEXT}}}},
}
_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "array", "items": _FILE, "minItems": 1}},
}
_BODY = {
    "required": True,
    "content": {"multipart/form-data": {"schema": _FORM}, "application/octet-stream": {"schema": _FILE}},
}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K}


def prediction_input(path: str) -> dict[str, Any]:
    """Describe the body and the parameters of a path of `PREDICTION_PATHS`."""
    query = {
        "top_k": ("classes to return", _TOP_K),
        "crop": ("return what the network sees, as PNG", {"type": "boolean"}),
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": description, "schema": schema}
        for name, (description, schema) in query.items()
    ]
    for name in re.findall(r"{(\w+)}", path):
        parameters.append({"name": name, "in": "path", "required": True, "schema": _TEXT})
    return {"requestBody": _BODY, "parameters": parameters}
