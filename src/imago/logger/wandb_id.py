"""Let a resumed run continue its run of Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from imago.files import write_text
from imago.runs.signals import is_main_process


def wandb_id(logger: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """Return the argument `id` of W&B's logger, kept in the run directory; {} for others, or if it is typed."""
    is_typed = logger.get("id") or logger.get("version")
    if not str(logger["_target_"]).endswith(".WandbLogger") or is_typed or not is_main_process():
        return {}
    file = run_dir / "wandb_id.txt"
    if not file.is_file():
        write_text(file, uuid4().hex)
    return {"id": file.read_text("utf-8")}
