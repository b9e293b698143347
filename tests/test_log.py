"""Messages on the screen and in a log file."""

import errno
import io
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from imago import log as log_module
from imago.log import ignore_closed_pipes, log_to

log = logging.getLogger("imago.test")


def test_messages_are_printed_and_the_file_also_has_debug_messages_and_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    with log_to(tmp_path / "x.log"):
        log.info("a line with é")
        log.debug("a detail")
        warnings.warn("of a library", stacklevel=1)
    log.info("afterwards")
    assert capsys.readouterr().out == "a line with é\n"
    text = (tmp_path / "x.log").read_text(encoding="utf-8")
    assert all(message in text for message in ("a line with é", "a detail", "of a library"))
    assert "afterwards" not in text


def test_names_with_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture):
    with log_to(tmp_path / "x.log"):
        log.info("\nrun %s\nnext", "a\x1b[2J\r\udce9")
    assert capsys.readouterr().out == "\n" + r"run a\x1b[2J\r\udce9" + "\nnext\n"
    assert r"run a\x1b[2J\r\udce9" in (tmp_path / "x.log").read_text(encoding="utf-8")


def test_without_a_file_messages_are_printed_once_in_each_job_of_a_sweep(capsys: pytest.CaptureFixture):
    @log_to()
    def job() -> None:
        log.info("a line")
        log.debug("a detail")

    job()
    job()
    assert capsys.readouterr().out == "a line\na line\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_command_goes_on_when_the_reader_of_its_output_ends(monkeypatch: pytest.MonkeyPatch, name: str):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as pipe, monkeypatch.context() as context:
        for stream in (name, f"__{name}__"):
            context.setattr(sys, stream, pipe)
        ignore_closed_pipes()
        print("é", file=getattr(sys, name), flush=True)
        assert os.read(reader, 10).decode() == "é\n"
        os.close(reader)
        for _ in range(3):
            print("x" * 100_000, file=getattr(sys, name), flush=True)


def test_a_pipe_of_windows_gets_utf_8(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="cp1252") as pipe:
        monkeypatch.setattr(log_module, "IS_POSIX", False)
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "__stdout__", pipe)
        ignore_closed_pipes()
        print("五", flush=True)
        assert os.read(reader, 10).decode("utf-8") == "五\n"
    os.close(reader)


class _ClosedOnWindows(io.FileIO):
    def write(self, data):
        raise OSError(errno.EINVAL, "Invalid argument")


class _Pipe(log_module._Pipe, _ClosedOnWindows):
    """An output whose reader has ended, on Windows."""


def test_windows_reports_a_closed_pipe_in_another_way(monkeypatch: pytest.MonkeyPatch):
    with _Pipe(os.devnull, "w") as pipe:
        with pytest.raises(OSError, match="Invalid argument"):
            pipe.write(b"abc")
        monkeypatch.setattr(log_module, "IS_POSIX", False)
        assert pipe.write(b"abc") == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_does_not_end_the_command(capsys: pytest.CaptureFixture):
    with log_to(Path("/dev/full")):
        log.info("a line")
    assert capsys.readouterr() == ("a line\n", "")
