"""Hold the models of the service: load their versions, choose one for a request, reload them without a gap."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from imago import onnx_classifier
from imago.errors import DataError, UserError
from imago.files import sha256_of
from imago.onnx_classifier import OnnxClassifier
from imago.serve.batching import Batcher
from imago.serve.errors import RequestError
from imago.serve.metrics import Metrics
from imago.serve.settings import Settings

log = logging.getLogger(__name__)

_DRAIN_S = 0.05  # between two looks whether a replaced version is still in use; our own choice
_HIDDEN = "send the API key to read it"


class Version:
    """One version of a model.

    Args:
        model, name: e.g. "flowers" and "v2".
        path: the ONNX file.
        settings: of the service.
        metrics: which count its batches.

    Attributes:
        classifier: the network.
        reason: why its newest file is not in use; None if it is.

    Raises:
        DataError: the file cannot be used.
    """

    def __init__(self, model: str, name: str, path: Path, settings: Settings, metrics: Metrics) -> None:
        self.model, self.name, self.path = model, name, path
        self.classifier = OnnxClassifier(path, settings.threads_per_batch, spin=False)
        self.digest = ""  # of the file; "" if unknown
        on_batch = metrics.batch_size.labels(model, name).observe
        limits = (settings.max_batch, settings.max_wait_ms, settings.max_queue)
        num_threads = max(1, settings.threads // settings.threads_per_batch)
        self.batcher = Batcher(self.classifier, num_threads, *limits, on_batch)
        self.reason: str | None = None
        self._num_users = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the version alive for a request, also if it is replaced meanwhile."""
        self._num_users += 1
        try:
            yield
        finally:
            self._num_users -= 1

    async def retire(self) -> None:
        """End its thread after the last request."""
        while self._num_users:
            await asyncio.sleep(_DRAIN_S)
        self.batcher.close()

    def describe(self) -> dict[str, Any]:
        """Return what the file says about itself."""
        metadata = self.classifier.metadata
        described = {
            "class_names": list(self.classifier.class_names),
            "preprocess": self.classifier.preprocess.to_dict(),
            "run_id": metadata.get(onnx_classifier.RUN_ID_KEY),
            "metrics": metadata.get(onnx_classifier.METRICS_KEY),
            "precision": metadata.get(onnx_classifier.PRECISION_KEY, "fp32"),
        }
        return json.loads(json.dumps(described), parse_constant=lambda _: None)  # NaN is not JSON


class Models:
    """All models by name and version.

    Args:
        read_settings: reads the settings, again for each reload.
        metrics: of the service.

    Attributes:
        settings: those in use.
        reason: why the last reload changed nothing; None if it worked.

    Raises:
        UserError: a setting or a file that cannot be used.
    """

    def __init__(self, read_settings: Callable[[], Settings], metrics: Metrics) -> None:
        self._read_settings, self._metrics = read_settings, metrics
        self.settings = read_settings()
        self._versions = {(model, name): self._load(model, name, path) for model, name, path in _listed(self.settings)}
        self._failed: dict[tuple[str, str], str] = {}  # new versions that cannot be used
        self._credits: dict[tuple[str, str], float] = {}
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task] = set()
        self.reason: str | None = None

    def choose(self, model: str | None = None, name: str | None = None) -> Version:
        """Return the version of a request: the named one, else one by the weights, of the named or the first model.

        Raises:
            RequestError: there is none.
        """
        names = self.settings.models
        model = model if model is not None else next(iter(names))
        if model not in names:
            raise RequestError("not_found", "there is no model of this name; GET /models lists them.")
        if name is not None and name not in names[model]:
            raise RequestError("not_found", "this model has no such version; GET /models lists them.")
        ready = [key for key in self._versions if key[0] == model and name in (None, key[1])]
        weights = {key: self.settings.weights[model][key[1]] for key in ready}
        if name is None:  # versions without a share get no requests
            weights = {key: weight for key, weight in weights.items() if weight}
        if not weights:
            raise RequestError("not_ready", "this model could not be loaded; GET /ready has the reason.")
        return self._versions[self._next_by_weight(weights)]

    def _next_by_weight(self, weights: dict[tuple[str, str], float]) -> tuple[str, str]:
        """Return the next key so that shares are exact at any time: the smooth round robin of nginx."""
        if len(weights) == 1:
            return next(iter(weights))
        for key, weight in weights.items():
            self._credits[key] = self._credits.get(key, 0.0) + weight
        best = max(weights, key=self._credits.__getitem__)
        self._credits[best] -= sum(weights.values())
        return best

    def readiness(self, has_reasons: bool = True) -> dict[str, Any]:
        """Return whether each version answers, and why not; ready as a whole if each model has a version that does.

        The reasons name files of this machine; without `has_reasons`, there is `_HIDDEN` in place of each.
        """

        def shown(reason: str | None) -> str | None:
            return reason if has_reasons or reason is None else _HIDDEN

        models: dict[str, dict[str, Any]] = {model: {} for model in self.settings.models}
        for model, name, _ in _listed(self.settings):
            version = self._versions.get((model, name))
            reason = version.reason if version else self._failed.get((model, name))
            models[model][name] = {"ready": version is not None, "reason": shown(reason)}
        is_ready = all(any(version["ready"] for version in versions.values()) for versions in models.values())
        return {"ready": is_ready, "reason": shown(self.reason), "models": models}

    def describe(self) -> list[dict[str, Any]]:
        """Return all models with their versions."""
        described = []
        for model, versions in self.readiness()["models"].items():
            for name, state in versions.items():
                version = self._versions.get((model, name))
                state |= {"version": name, "weight": self.settings.weights[model][name]}
                state |= version.describe() if version else {}
            is_default = model == next(iter(self.settings.models))
            described.append({"name": model, "default": is_default, "versions": list(versions.values())})
        return described

    def num_waiting(self) -> int:
        """Return the number of images that wait for a network."""
        return sum(version.batcher.num_waiting for version in self._versions.values())

    async def reload(self) -> None:
        """Read the settings and all files that have changed; a version that cannot be loaded keeps its old network.

        Models, versions, weights and the threshold are replaced; the other settings stay those of the start.
        """
        async with self._reloading:
            try:
                settings = await asyncio.to_thread(self._read_settings)
            except UserError as error:
                self.reason = str(error)
                log.error("reload: %s", error)
            else:
                await self._replace(settings)

    async def _replace(self, settings: Settings) -> None:
        versions: dict[tuple[str, str], Version] = {}
        failed: dict[tuple[str, str], str] = {}
        for model, name, path in _listed(settings):
            old = self._versions.get((model, name))
            try:
                versions[model, name] = await asyncio.to_thread(self._load, model, name, path, old)
            except DataError as error:
                log.error("reload of %s, version %s: %s", model, name, error)
                failed[model, name] = str(error)
                if old:
                    old.reason = str(error)
                    versions[model, name] = old
        replaced = [version for version in self._versions.values() if version not in versions.values()]
        used = replace(self.settings, models=settings.models, weights=settings.weights, threshold=settings.threshold)
        if ignored := [name for name, value in vars(settings).items() if value != vars(used)[name]]:
            log.warning("reload: the change of %s needs a restart", ", ".join(ignored))
        self.settings = used
        self._versions, self._failed, self._credits, self.reason = versions, failed, {}, None
        for version in replaced:
            self._retiring.add(task := asyncio.create_task(version.retire()))
            task.add_done_callback(self._retiring.discard)
        log.info("reloaded: %d of %d versions are ready", len(versions), len(versions | failed))

    def _load(self, model: str, name: str, path: Path, old: Version | None = None) -> Version:
        """Load a version, or return the old one if its file is the same."""
        digest = ""
        with suppress(OSError):  # which `Version` explains
            digest = sha256_of(path)
        if old and digest and (old.path, old.digest) == (path, digest):
            old.reason = None
            return old
        version = Version(model, name, path, self.settings, self._metrics)
        version.digest = digest  # of before it was loaded: a file that was replaced meanwhile is loaded again
        return version


def _listed(settings: Settings) -> Iterator[tuple[str, str, Path]]:
    """Yield name, version and file of all versions."""
    for model, versions in settings.models.items():
        yield from ((model, name, path) for name, path in versions.items())
