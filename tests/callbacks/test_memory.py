"""Memory: the peak of the process, on logging steps only."""

import sys
from types import SimpleNamespace

import pytest
import torch

from imago.callbacks import memory
from imago.callbacks.memory import Memory, peak_memory_gib


def test_the_peak_is_what_the_system_tells_of_this_process(monkeypatch: pytest.MonkeyPatch):
    measured = peak_memory_gib(torch.device("cpu"))
    assert 0.05 < measured < 1000  # torch alone takes more than 50 MiB; a wrong unit would be off by 1024
    unit = 1 if sys.platform == "darwin" else 1024
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    assert peak_memory_gib(torch.device("cpu")) == 3


def test_a_batch_that_only_accumulates_logs_nothing():
    logged = []
    module = SimpleNamespace(log_step=lambda values, step: logged.append(step), device=torch.device("cpu"))
    callback = Memory()
    for step in (0, 1, 1, 2, 2, 3, 3, 4):  # two batches a step
        callback.on_train_batch_end(SimpleNamespace(global_step=step, log_every_n_steps=2), module, None, None, 0)
    assert logged == [1, 3]
