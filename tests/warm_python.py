"""Start Python processes without the seconds that imports take: each is forked from one that has imported everything.

In all other ways it is a separate process: its own session, arguments, environment, output and exit code. Where Python
cannot fork, as on Windows, each starts anew, which takes the seconds.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from imago.paths import PROJECT_ROOT
from imago.system import own_session

_HYDRA = "import hydra, hydra.core.hydra_config, hydra._internal.hydra, omegaconf"
_IMAGO = (
    "import imago.training.build, imago.training.tune, imago.training.train, onnxscript; "
    "import imago.inference.evaluate, imago.inference.predict, imago.export.export; "
    "import matplotlib.figure, torch.utils.tensorboard, PIL.Image; PIL.Image.init(); "
    "matplotlib.figure.Figure().savefig(os.devnull, format='png')"
)  # The drawn shapes are the same in every process, and take a second.
_SHAPES = (
    "import functools, imago.data.shapes as shapes; shapes.render_split = functools.cache(shapes.render_split); "
    "[shapes.render_split(split) for split in shapes.SPLIT_SIZES]"
)

_FLAGS = ("-X", "warn_default_encoding", "-W", "ignore::EncodingWarning")  # an error in imago, see below

# A waiter process between the job and the server keeps the server ready for the next job.
_SERVER = """
import atexit, json, os, runpy, signal, sys, threading, types, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"imago\\b")  # text is UTF-8 on every system
sys.path.insert(0, {source!r})  # imago is imported from this checkout
{preload}
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the exit codes of the waiters are not read
print("ready", flush=True)
for line in sys.stdin:
    if not os.fork():
        break
else:
    os._exit(0)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
with open(line.strip()) as file:
    job = json.load(file)
pid = os.fork()
if pid:
    with open(job["status"], "a", buffering=1) as status:
        print(pid, file=status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=status)
    os._exit(0)
os.setsid()
for number, name in enumerate(("/dev/null", job["out"], job["err"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["environment"])
sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
sys.executable = job.get("executable", sys.executable)
sys.argv, sys.orig_argv = job["arguments"], [sys.executable, *job["arguments"]]
exit_code = 0
try:
    if sys.argv[0] == "-c":
        code = sys.argv.pop(1)
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as error:
    if not isinstance(error.code, int | None):
        raise
    exit_code = error.code or 0
# As at the end of Python, but no module is freed, which takes more than a second.
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(exit_code)
"""

# A program with the arguments of `python`: it lets the server of the jobs file start the process, forwards signals to
# it, and exits as it does. It shares the files of its own output with it.
_CHILD = """#!{python} -IS
import json, os, signal, sys, tempfile, time

folder = tempfile.mkdtemp(dir={folder!r})
status, job = folder + "/status", folder + "/job.json"
open(status, "w").close()
out, err = (f"/proc/{{os.getpid()}}/fd/{{number}}" for number in (1, 2))
with open(job, "w") as file:
    typed = {{"arguments": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}
    json.dump(typed | {{"out": out, "err": err, "status": status, "executable": sys.argv[0]}}, file)
with open({folder!r} + "/jobs", "w") as jobs:
    jobs.write(job + "\\n")
lines = []
while len(lines) < 2 or not lines[1].endswith("\\n"):
    time.sleep(0.02)
    with open(status) as file:
        lines = file.readlines()
    if len(lines) == 1 and lines[0].endswith("\\n"):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: os.kill(int(lines[0]), number))
code = int(lines[1])
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class WarmProcess:
    """A process that has been started; `pid` is also its session.

    Args:
        folder: receives its output (`out`, `err`) and its process id and exit code (`status`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid = int(self._status_line(0, time.monotonic() + 60))

    @property
    def stdout(self) -> str:
        return (self.folder / "out").read_text("utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text("utf-8", errors="replace")

    @property
    def text(self) -> str:
        """All output so far."""
        return self.stdout + self.stderr

    def wait(self, timeout_s: float = 280) -> int:
        """Return the exit code; a negative one is the number of the signal that killed the process."""
        try:
            return int(self._status_line(1, time.monotonic() + timeout_s))
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout_s} s:\n{self.text[-3000:]}") from None

    def wait_for(self, text: str, timeout_s: float = 200) -> None:
        """Wait until the output contains `text`."""
        end = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < end, self.text[-3000:]
            assert is_alive(self.pid), self.text[-3000:]
            time.sleep(0.02)

    def _status_line(self, line: int, end: float) -> str:
        while time.monotonic() < end:
            lines = (self.folder / "status").read_text().splitlines(keepends=True)
            if len(lines) > line and lines[line].endswith("\n"):
                return lines[line].strip()
            time.sleep(0.005)
        raise TimeoutError


class WarmPython:
    """Starts Python processes that have already executed `preload`.

    Args:
        preload: Python statements.
        source: the folder that imago is imported from.

    Attributes:
        executable: a program with the arguments of `python` that starts such processes.
    """

    def __init__(self, preload: str, source: Path = PROJECT_ROOT / "src") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._num_started = 0
        self._can_fork = hasattr(os, "fork")
        if not self._can_fork:
            self.executable = Path(sys.executable)
            return
        jobs = Path(self._folder.name) / "jobs"
        os.mkfifo(jobs)
        reader = os.open(jobs, os.O_RDONLY | os.O_NONBLOCK)
        self._jobs = jobs.open("w", buffering=1)
        os.set_blocking(reader, True)
        self.executable = Path(self._folder.name) / "python"
        self.executable.write_text(_CHILD.format(python=sys.executable, folder=self._folder.name))
        self.executable.chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", _SERVER.format(preload=preload, source=str(source))],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=reader,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(reader)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def start(
        self, *arguments: str, cwd: Path = PROJECT_ROOT, warm_children: bool = False, **environment: str
    ) -> WarmProcess:
        """Start `python ARGUMENTS...`: a script, or `-c` and code.

        With `warm_children`, it also starts its own processes in this way. It is for the trials of a sweep, not for
        the ranks of `strategy=ddp`.
        """
        self._num_started += 1
        folder = Path(self._folder.name) / str(self._num_started)
        folder.mkdir()
        for name in ("out", "err", "status"):
            (folder / name).touch()
        job = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        }
        job |= {name: str(folder / name) for name in ("out", "err", "status")}
        if warm_children:
            job["executable"] = str(self.executable)
        (folder / "job.json").write_text(json.dumps(job))
        if self._can_fork:
            print(folder / "job.json", file=self._jobs)
        else:
            _start_anew(job)
        return WarmProcess(folder)

    def run(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess:
        """Run `python ARGUMENTS...` as `start` does and wait for its exit."""
        process = self.start(*arguments, **settings)
        code = process.wait()
        return subprocess.CompletedProcess(arguments, code, process.stdout, process.stderr)

    def close(self) -> None:
        if self._can_fork:
            self._jobs.close()
            self._server.wait()
        self._folder.cleanup()


def _start_anew(job: dict[str, Any]) -> None:
    """Start the process of a job, and write its number and exit code as the server does."""
    with open(job["out"], "ab") as out, open(job["err"], "ab") as err:
        process = subprocess.Popen(
            [sys.executable, *_FLAGS, *job["arguments"]],
            **{"cwd": job["cwd"], "env": job["environment"], "stdin": subprocess.DEVNULL, "stdout": out, "stderr": err},
            **own_session(),
        )

    def write_status() -> None:
        with open(job["status"], "a", encoding="ascii", buffering=1) as status:
            print(process.pid, file=status)
            print(process.wait(), file=status)

    threading.Thread(target=write_status, daemon=True).start()


@functools.cache
def warm_imago() -> WarmPython:
    """Return the one, shared by all tests, that has imported the commands and their packages, and drawn the shapes."""
    return WarmPython(f"{_HYDRA}; {_IMAGO}; {_SHAPES}")


@functools.cache
def warm_copy(source: Path) -> WarmPython:
    """Return one like `warm_imago` for a copy of imago."""
    return WarmPython(f"{_HYDRA}; {_IMAGO}; {_SHAPES}", source)


@functools.cache
def warm_hydra() -> WarmPython:
    """Return the one, shared by all tests, that has imported Hydra only: no torch, no imago."""
    return WarmPython(_HYDRA)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive_in_session(session: int) -> list[int]:
    """Return the processes of a session that are still running."""
    alive = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == session and is_alive(pid):
                alive.append(pid)
    return alive


def left_over(process: WarmProcess) -> list[int]:
    """Return the processes of its session that do not exit within ten seconds."""
    for _ in range(100):
        if not alive_in_session(process.pid):
            break
        time.sleep(0.1)
    return alive_in_session(process.pid)
