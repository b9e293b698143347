"""A run directory belongs to one process at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imago.errors import ConfigError
from imago.runs.lock import held

HOLD = """
import sys, time
from pathlib import Path
from imago.runs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, holder: subprocess.Popen):
    for _ in range(2):  # being refused takes nothing away
        with pytest.raises(ConfigError, match="belongs to a run that is still going on"), held(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_keep_it(tmp_path: Path):
    with held(tmp_path):
        pid = os.fork()
        if not pid:
            signal.pause()
    with held(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
