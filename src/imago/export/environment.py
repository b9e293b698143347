"""Run a format whose packages clash with the project's in an environment of its own, `.venv-NAME`.

`make export-env FORMAT=NAME` creates it. A process there uses the functions `write` and `load` of the format's module;
JSON and arrays are exchanged through a connection, never pickled.
"""

import json
import logging
import signal
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import numpy as np

from imago.errors import UserError
from imago.export import weights
from imago.export.formats import Options
from imago.export.metadata import NETWORK_KEY, read_metadata, write_metadata
from imago.export.parity import Outputs, Predict
from imago.model.classifier import Classifier

log = logging.getLogger(__name__)


class RemoteFormat:
    """The functions `write` and `load` of a format's module, which run in another environment.

    Args:
        module: the name of the module in this package.
        python: the interpreter of the environment, which can import this project too.
    """

    def __init__(self, module: str, python: Path) -> None:
        self._command = (str(python), "-P", "-m", __name__)
        self._module = module

    def write(
        self, classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options
    ) -> dict[str, Any]:
        """Write the files of the format to `path`, see `imago.export.onnx.write`; the weights go through a file."""
        with TemporaryDirectory(dir=path.parent) as directory:
            source = Path(directory, "state_dict")
            weights.write(classifier, source, metadata, Options("state_dict"))
            write_metadata(source, {**metadata, NETWORK_KEY: dict(classifier.network_settings)})
            return json.loads(_Process(self._command, (self._module, "write", str(source), str(path))).receive())

    def load(self, path: Path, num_threads: int) -> Predict:
        """Load the files in a process that lives as long as the function that is returned."""
        read_metadata(path)  # which checks the files
        process = _Process(self._command, (self._module, "load", str(path), str(num_threads)))
        process.receive()  # it is ready

        def predict(images: np.ndarray) -> Outputs:
            with suppress(ConnectionError):  # `receive` raises the reason
                process.connection.send_bytes(_to_bytes(images))
            return _to_array(process.receive()), _to_array(process.receive())

        return predict


class _Process:
    """A process that runs `run`; it ends when this object is garbage."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        self.connection, other = Pipe()
        self._output = TemporaryFile()  # noqa: SIM115, `_end` closes it
        with other:
            self._command = [*command, str(other.fileno()), *arguments]
            streams: dict[str, Any] = {"stdin": DEVNULL, "stdout": self._output, "stderr": STDOUT}
            self._process = Popen(self._command, pass_fds=[other.fileno()], **streams)
        weakref.finalize(self, _end, self._process, self.connection, self._output)

    def receive(self) -> bytes:
        """Return what the process sends.

        Raises:
            UserError: with the last line that it printed, if it ended with the exit code of a user's error; or if a
                signal ended it, as the system does without memory, or a crash in a library.
            RuntimeError: with all that it printed, if it failed in another way.
        """
        try:
            return self.connection.recv_bytes()
        except (EOFError, ConnectionError):
            exit_code = self._process.wait()
        self._output.seek(0)
        text = self._output.read().decode(errors="replace").strip()
        log.debug("%s", text)
        if exit_code == UserError.exit_code:
            raise UserError(text.rpartition("\n")[2])
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            raise UserError(
                f"{self._command[0]} was ended by {name}: too little memory, or a crash; use another format."
            )
        raise RuntimeError(f"{self._command} ended with exit code {exit_code}:\n{text}")


def _end(process: Popen, connection: Connection, output: IO[bytes]) -> None:
    connection.close()
    output.close()
    process.kill()
    process.wait()


def _to_bytes(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _to_array(content: bytes) -> np.ndarray:
    return np.load(BytesIO(content), allow_pickle=False)


def run(arguments: Sequence[str]) -> None:
    """Run `write` or `load` of a module, for the process at the other end of a connection.

    Args:
        arguments: file handle of the connection, module, function, and the arguments of the function.
    """
    handle, module_name, function, *paths = arguments
    module, connection = import_module(f"imago.export.{module_name}"), Connection(int(handle))
    try:
        if function == "write":
            metadata = read_metadata(Path(paths[0]))
            report = module.write(weights.load_classifier(Path(paths[0])), Path(paths[1]), metadata, Options())
            connection.send_bytes(json.dumps(report).encode())
            return
        predict = module.load(Path(paths[0]), int(paths[1]))
        connection.send_bytes(b"ready")
        while True:
            for array in predict(_to_array(connection.recv_bytes())):
                connection.send_bytes(_to_bytes(array))
    except (EOFError, ConnectionError):
        return  # the other process has ended, or needs no more
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run(sys.argv[1:])
