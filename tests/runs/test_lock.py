"""Only one process uses a run directory at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imago.errors import ConfigError
from imago.runs.lock import lock_directory

HOLD = """
import sys, time
from pathlib import Path
from imago.runs.lock import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, holder: subprocess.Popen):
    for _ in range(2):  # a refusal does not release the lock
        with pytest.raises(ConfigError, match="belongs to a run that is still running"), lock_directory(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_directory(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path):
    with lock_directory(tmp_path):
        pid = os.fork()
        if not pid:
            signal.pause()
    with lock_directory(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
