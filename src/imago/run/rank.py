"""Which of the processes of a run this one is, before Lightning knows."""

import os


def is_main_process() -> bool:
    """Tell from what torchrun, SLURM or Lightning set for each rank; one process alone has none of them."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def rank_name() -> str:
    """Name this process as its failure file does: the global rank where the environment tells it."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name]
    node, local = os.environ.get("NODE_RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    return local if node == "0" else f"{local} of node {node}"
