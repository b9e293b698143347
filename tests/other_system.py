"""Let this process look like one of Windows or macOS to imago: modules and names that it lacks there are removed.

`python -c "import other_system; other_system.run('windows')" src/train.py ARGUMENTS` runs a command in such a process.
The packages of others are left as they are: they have their own branches for these systems.
"""

import errno
import fcntl
import multiprocessing
import os
import pathlib
import runpy
import shutil
import signal
import sys
import types
from typing import Any

import psutil

_ALL_SIGNALS = types.SimpleNamespace(**vars(signal))
_REAL_KILL = os.kill
_REAL_LOCKF = fcntl.lockf
_MEMORY = psutil.Process().memory_info()
# Names of `os` and `signal` that the Python of a system does not have, as far as a command could need them.
_MISSING = {
    "windows": {
        "os": "fork register_at_fork memfd_create sched_getaffinity killpg getpgid setsid getsid sysconf uname "
        "getuid geteuid O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK fchmod chown sync nice pread mkfifo sendfile",
        "signal": "SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGCHLD SIGALRM SIGPIPE SIGQUIT SIGCONT SIGSTOP alarm setitimer "
        "sigwaitinfo sigwait pthread_kill siginterrupt",
    },
    "macos": {"os": "memfd_create sched_getaffinity posix_fadvise sched_setaffinity", "signal": "sigwaitinfo"},
}
_BREAK = signal.SIGUSR1  # takes the role of SIGBREAK, which Ctrl-Break sends


def become(system: str) -> None:
    """Remove what `system` lacks; modules of imago that were imported before are imported again."""
    for other in list(sys.modules.values()):  # Python, torch and Lightning take this for Linux, and need all signals
        if vars(other).get("signal") is signal and other is not sys.modules[__name__]:
            vars(other)["signal"] = _ALL_SIGNALS
    for module, names in _MISSING[system].items():
        for name in names.split():
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    multiprocessing.set_start_method("spawn", force=True)
    pathlib.Path.read_text = _without_kernel_files(pathlib.Path.read_text)  # type: ignore[method-assign]
    if system == "windows":
        _become_windows()
    else:
        sys.platform = "darwin"
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # which open directories
    for name in [name for name in sys.modules if name.partition(".")[0] == "imago"]:
        del sys.modules[name]


def _become_windows() -> None:
    sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp"), None))  # type: ignore[arg-type]
    locks: Any = types.ModuleType("msvcrt")
    locks.LK_NBLCK, locks.locking = 2, _lock_bytes
    sys.modules["msvcrt"] = locks
    signals: Any = signal
    signals.SIGBREAK = signals.CTRL_BREAK_EVENT = _BREAK
    os.kill, os.symlink, os.fsync, os.open = _kill, _refuse_link, _flush(os.fsync), _open_file(os.open)
    pathlib.Path.replace = _replace(pathlib.Path.replace)  # type: ignore[method-assign]
    memory = types.SimpleNamespace(peak_wset=_MEMORY.rss, rss=_MEMORY.rss)
    psutil.Process.memory_info = lambda self: memory


def _without_kernel_files(read: Any) -> Any:
    def read_text(path: pathlib.Path, *args: Any, **kwargs: Any) -> str:
        if str(path).startswith(("/proc", "/sys", "/dev")):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return read(path, *args, **kwargs)

    return read_text


def _lock_bytes(handle: int, mode: int, num_bytes: int) -> None:
    """Lock from the position of the file on, for this process alone and never shared, as Windows does."""
    assert mode == 2
    start = os.lseek(handle, 0, os.SEEK_CUR)
    own = os.open(f"/proc/self/fd/{handle}", os.O_RDWR)  # POSIX locks exclusively only what is open for writing
    _REAL_LOCKF(own, fcntl.LOCK_EX | fcntl.LOCK_NB, num_bytes, start, os.SEEK_SET)
    _OPEN.append(own)  # closing it would release the lock


_OPEN: list[int] = []


def _kill(pid: int, number: int) -> None:
    """End a process at once, except by the event that its group gets."""
    _REAL_KILL(pid, number if number in (0, _BREAK) else 9)


def _refuse_link(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client")


def _flush(fsync: Any) -> Any:
    def flush(handle: int) -> None:
        with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as file:
            flags = int(file.read().split("flags:")[1].split()[0], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    return flush


def _open_file(open_file: Any) -> Any:
    def open_no_directory(path: Any, *args: Any, **kwargs: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_file(path, *args, **kwargs)

    return open_no_directory


def _replace(replace: Any) -> Any:
    """Refuse a target that this process has open."""

    def replace_closed(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        opened = {os.path.realpath(f"/proc/self/fd/{handle}") for handle in os.listdir("/proc/self/fd")}
        if os.path.realpath(target) in opened:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        return replace(source, target)

    return replace_closed


def run(system: str) -> None:
    """Run the command of `sys.argv`, a script and its arguments, on this system; it starts others by OTHER_PYTHON."""
    become(system)
    sys.executable = os.environ.get("OTHER_PYTHON", sys.executable)
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")
