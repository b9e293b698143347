"""Count requests and predictions for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        version = ("model", "version")
        self.requests = Counter("imago_requests", "Answers.", ("method", "status"), registry=registry)
        self.predictions = Counter("imago_predictions", "Classified images.", version, registry=registry)
        self.refused = Counter("imago_refused_images", "Images with an error.", ("code",), registry=registry)
        self.seconds = Histogram(
            "imago_prediction_seconds",
            "From the received image to its prediction.",
            version,
            buckets=_SECONDS,
            registry=registry,
        )
        self.confidence = Histogram(
            "imago_confidence",
            "Probability of the best class: if it changes, the images may have changed.",
            version,
            buckets=_SHARES,
            registry=registry,
        )
        self.batch_size = Histogram(
            "imago_batch_size", "Images of a batch.", version, buckets=_BATCH_SIZES, registry=registry
        )
        self.waiting = Gauge("imago_waiting_images", "Images that wait.", ("for",), registry=registry)
        self.replaced = Gauge("imago_replaced_decoders", "Decoders that died or hung.", registry=registry)
        ProcessCollector(registry=registry)
