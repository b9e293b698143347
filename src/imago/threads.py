"""Batches are put together by one thread in each process, however many the network computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_intraop_thread() -> Iterator[None]:
    """Let torch's operations in here run on the calling thread alone, and give it back its threads afterwards.

    On a busy machine the threads of one operation wait for those that the system does not let run: batches came 20
    times later under a load of three processes a core, and 3 times later, their share of the cores, with one thread.
    Call it from one thread at a time: the setting belongs to the process.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
