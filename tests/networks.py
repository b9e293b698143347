"""Networks built from their settings, as a task builds them."""

from typing import Any

from imago.model.adapt import build_network


def network(kind: type, num_classes: int, image_size: int, **settings: Any) -> Any:
    return build_network({"_target_": f"{kind.__module__}.{kind.__name__}", **settings}, num_classes, image_size)
