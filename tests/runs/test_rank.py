"""A rank does not outlive the process that started it."""

import os
import subprocess
import sys
import time

import pytest

from imago.runs import rank

MAIN = """
import os, subprocess, sys, time
from imago.runs.rank import end_with_main_process
end_with_main_process()
code = "import time; from imago.runs import rank; rank._GRACE_S = 0.1; "
code += "rank.end_with_main_process(); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"LOCAL_RANK": "1"})
print(child.pid, flush=True)
time.sleep(60)
"""


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_rank_ends_when_the_process_that_started_it_is_killed():
    environment = {name: value for name, value in os.environ.items() if name != rank._MAIN_PID}
    command = [sys.executable, "-c", MAIN]
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as main:
        assert main.stdout is not None
        child = int(main.stdout.readline())
        time.sleep(2)
        assert lives(child)
        main.kill()
    end = time.monotonic() + 30
    while lives(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not lives(child)


def test_a_rank_that_somebody_else_started_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(rank._MAIN_PID, raising=False)
    monkeypatch.setenv("RANK", "1")
    rank.end_with_main_process()
    assert rank._MAIN_PID not in os.environ
