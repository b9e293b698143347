"""Which of the processes of a run this one is, before Lightning knows."""

import os
import threading
import time

_MAIN_PID = "IMAGO_MAIN_PID"  # in the environment of the ranks that Lightning starts as commands
_GRACE_S = 5.0  # a lost connection is noticed, and written down, sooner than that


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


def end_with_main_process() -> None:
    """End this rank when the process that started it is gone; called in both of them, at their start.

    A rank that has not come to connect would wait for the first one for half an hour.
    """
    main_pid = os.environ.get(_MAIN_PID)
    if is_main_process():
        os.environ[_MAIN_PID] = str(os.getpid())
    elif main_pid is not None:
        threading.Thread(target=_end_without, args=(int(main_pid),), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_GRACE_S)
    os._exit(1)
