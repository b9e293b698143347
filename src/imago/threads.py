"""Limit torch to one thread while a batch is prepared."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_intraop_thread() -> Iterator[None]:
    """Run torch operations on the calling thread only; restore the number of threads afterwards.

    On a busy machine the threads of one operation wait for each other, and a batch takes many times longer with all
    threads than with one. The setting belongs to the process, so only one thread may call this at a time.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
