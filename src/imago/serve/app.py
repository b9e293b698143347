"""Provide the web application: its routes, and the one shape of errors."""

import asyncio
import base64
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from imago.errors import DataError
from imago.images import FORMATS
from imago.serve.decoding import DecoderPool
from imago.serve.errors import RequestError, json_response
from imago.serve.forms import read_files
from imago.serve.limits import HAS_KEY, LOG_FIELDS, Guard
from imago.serve.metrics import Metrics
from imago.serve.models import Models, Version
from imago.serve.schema import DEFAULT_TOP_K, ERRORS, EXAMPLES, MAX_TOP_K, PREDICTION_PATHS, prediction_input
from imago.statistics.metrics import top_classes

log = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page")
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_CODES = {404: "not_found", 405: "method_not_allowed"}  # of errors that Starlette raises
_API_VERSION = "1"


class Service:
    """Answer requests with the models and the decoders.

    Args:
        models: all models.
        decoders: processes that read images; started and closed with the application.
        metrics: which count predictions.
    """

    def __init__(self, models: Models, decoders: DecoderPool, metrics: Metrics) -> None:
        self.models, self.decoders, self.metrics = models, decoders, metrics

    async def predict(self, request: Request) -> Response:
        """Classify the images of a request."""
        top_k, crop = _read_query(request)
        body, content_type = await request.body(), request.headers.get("content-type", "")
        files = read_files(body, content_type, self.models.settings.max_files)
        chosen = self.models.choose(request.path_params.get("name"), request.path_params.get("version"))
        request.scope[LOG_FIELDS]["model"] = f"{chosen.model}/{chosen.name}"
        with chosen.in_use():
            results = await asyncio.gather(*(self._classify(chosen, name, data, top_k, crop) for name, data in files))
        errors = [result for result in results if isinstance(result, RequestError)]
        if len(results) == 1:
            return errors[0].response() if errors else json_response(results[0])
        contents = [
            {"file": name, "error": result.content()} if isinstance(result, RequestError) else result
            for (name, _), result in zip(files, results, strict=True)
        ]
        return json_response({"predictions": contents}, errors[0].status if len(errors) == len(files) else 200)

    async def _classify(
        self, version: Version, name: str | None, data: bytes, top_k: int, crop: bool
    ) -> dict[str, Any] | RequestError:
        """Return the prediction of an image, or why there is none."""
        start_s = time.perf_counter()
        labels = (version.model, version.name)
        try:
            decoded = await self.decoders.decode(data, version.classifier.preprocess, crop)
            logits, probabilities = await version.batcher.predict(decoded.pixels)
            if not np.isfinite((logits, probabilities)).all():
                raise RequestError("not_ready", "the outputs of this model contain NaN or infinity; use another one.")
        except RequestError as error:
            self.metrics.refused.labels(error.code).inc()
            return error
        except DataError as error:  # onnxruntime fails; the message names files of the server
            log.error("%s", error)
            return RequestError("not_ready", "this model fails for this image; use another one.")
        names = version.classifier.class_names
        best = [(names[index], float(probabilities[index])) for index in top_classes(logits[None], top_k)[0]]
        sets, detector = version.classifier.prediction_sets, version.classifier.unknown_detector
        (class_name, confidence), seconds = best[0], time.perf_counter() - start_s
        self.metrics.predictions.labels(*labels).inc()
        self.metrics.seconds.labels(*labels).observe(seconds)
        self.metrics.confidence.labels(*labels).observe(confidence)
        result = {
            "file": name,
            "class": class_name if confidence >= self.models.settings.threshold else None,
            "confidence": confidence,
            "top_k": [{"class": name, "probability": probability} for name, probability in best],
            "sets": sets.names(logits[None], names)[0] if sets else {},
            **({"unlike_training": bool(detector.scores(logits[None])[0] < 0)} if detector else {}),
            "model": {"name": version.model, "version": version.name},
            "time_ms": round(1000 * seconds, 1),
        }
        png = {"crop": "data:image/png;base64," + base64.b64encode(decoded.png).decode()} if crop else {}
        return result | png

    def limits(self) -> dict[str, Any]:
        """Return what a client should know before it sends an image."""
        settings = self.models.settings
        names = ("max_body_mb", "max_pixels", "max_files", "threshold")
        return {name: getattr(settings, name) for name in names} | {"formats": list(FORMATS)}

    def scrape(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self.metrics.waiting.labels("decoder").set(self.decoders.num_waiting)
        self.metrics.waiting.labels("model").set(self.models.num_waiting())
        self.metrics.replaced.set(self.decoders.num_replaced)
        return generate_latest(self.metrics.registry)

    @asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the decoders, and end them with the application; SIGHUP reloads the models."""
        await self.decoders.start()
        loop, reloads = asyncio.get_running_loop(), set()
        has_terminal = os.isatty(0)

        def reload() -> None:
            if has_terminal and not os.isatty(0):  # the signal says that its window was closed
                signal.raise_signal(signal.SIGTERM)
            else:
                reloads.add(task := loop.create_task(self.models.reload()))
                task.add_done_callback(reloads.discard)

        with suppress(RuntimeError):  # not in the main thread, as in tests
            loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            yield
        finally:
            await self.decoders.close()


def create_app(service: Service, api_key: str = "") -> FastAPI:
    """Return the application of a service; with an `api_key`, requests must have it."""
    app = FastAPI(
        title="imago",
        version=_API_VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to http://, behind a proxy with TLS: the key and the image would follow
        lifespan=service.run,
    )
    app.add_middleware(Guard, settings=service.models.settings, api_key=api_key, metrics=service.metrics)
    _add_prediction_routes(app, service)
    _add_status_routes(app, service)
    _add_page(app)

    async def on_request_error(_: Request, error: Any) -> Response:
        return error.response()

    async def on_http_error(_: Request, error: Any) -> Response:
        code = _CODES.get(error.status_code, "bad_request")
        remedy = "GET /openapi.json lists the addresses and their methods"
        return RequestError(code, f"{str(error.detail).rstrip('.').lower()}; {remedy}.").response(error.headers)

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(HTTPException, on_http_error)
    return app


def _add_prediction_routes(app: FastAPI, service: Service) -> None:
    # FastAPI describes them. It would take a third of the time of a small network to call them, so a plain route does.
    for path, description in PREDICTION_PATHS.items():
        responses: Any = EXAMPLES["predict"] | ERRORS
        app.post(path, description=description, responses=responses, openapi_extra=prediction_input(path))(
            service.predict
        )
        app.router.routes.insert(0, Route(path, service.predict, methods=["POST"], include_in_schema=False))


def _add_status_routes(app: FastAPI, service: Service) -> None:
    @app.get("/models", responses=EXAMPLES["models"])
    async def models() -> Response:
        """List the models, their versions, and the limits of the service."""
        return json_response({"models": service.models.describe(), "limits": service.limits()})

    @app.head("/health", include_in_schema=False)  # of load balancers
    @app.get("/health", responses=EXAMPLES["health"])
    async def health() -> Response:
        """Answer as long as the process runs."""
        return json_response({"status": "ok"})

    @app.head("/ready", include_in_schema=False)  # of load balancers
    @app.get("/ready", responses=EXAMPLES["ready"])
    async def ready(request: Request) -> Response:
        """Answer 200 if each model has a version that can be used, else 503; the reasons need the key."""
        readiness = service.models.readiness(request.scope[HAS_KEY])
        return json_response(readiness, 200 if readiness["ready"] else 503)

    @app.get("/metrics", responses=EXAMPLES["metrics"])
    async def metrics() -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(service.scrape(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/admin/reload", responses=EXAMPLES["ready"] | ERRORS)
    async def reload() -> Response:
        """Read the configuration and changed models again, as SIGHUP does; needs the API key."""
        await service.models.reload()
        readiness = service.models.readiness()
        versions = [version for model in readiness["models"].values() for version in model.values()]
        if readiness["reason"] or any(version["reason"] for version in versions):
            raise RequestError(
                "not_ready", "something could not be loaded, see GET /ready; what worked before goes on."
            )
        return json_response(readiness)


def _add_page(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    for path, (name, media_type) in _PAGE_FILES.items():
        answer = Response((_PAGE / name).read_bytes(), headers=headers, media_type=media_type)
        app.router.routes.append(Route(path, answer, methods=["GET"], include_in_schema=False))


def _read_query(request: Request) -> tuple[int, bool]:
    """Return `top_k` and `crop` of a request.

    Raises:
        RequestError: one of them has another value.
    """
    top_k = request.query_params.get("top_k", str(DEFAULT_TOP_K))
    crop = request.query_params.get("crop", "false").lower()  # Python's clients write True
    is_number = top_k.isascii() and top_k.isdecimal() and len(top_k) <= len(str(MAX_TOP_K))
    if not is_number or not 1 <= int(top_k) <= MAX_TOP_K:
        raise RequestError("invalid_parameter", f"top_k must be a whole number from 1 to {MAX_TOP_K}.")
    if crop not in ("true", "false"):
        raise RequestError("invalid_parameter", "crop must be true or false.")
    return int(top_k), crop == "true"
