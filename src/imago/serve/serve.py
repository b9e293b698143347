"""The command `serve.py`: read the settings, load the models, and answer requests until it is stopped."""

import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from imago.errors import ConfigError, UserError
from imago.log import ignore_closed_pipes
from imago.paths import executable
from imago.system import IS_POSIX
from imago.text import printable

if TYPE_CHECKING:  # imported when they are needed: --help takes no time
    from imago.serve.decoding import DecoderPool
    from imago.serve.settings import Settings

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "onnx", "onnxruntime", "yaml")
_KEY_VARIABLE = "IMAGO_API_KEY"
_KEEP_ALIVE_S = 5  # of an idle connection; our own choice
_BACKLOG = 256  # connections that wait to be accepted, all of which asyncio accepts at once; our own choice
_NUM_FILES = 2 * _BACKLOG  # open files that are kept free for these, the decoders and the models; our own choice
_HELP = """\
Serve exported models over HTTP, with a page for the browser at /. An image gets the same probabilities as in training.

Examples
  python src/serve.py model=logs/latest                    the ONNX file of a run, at http://127.0.0.1:8000
  python src/serve.py model=logs/latest/export/model_int8.onnx port=8080
  python src/serve.py 'model=[flowers.onnx,insects.onnx]'  two models: POST /models/insects/predict
  python src/serve.py config=models.yaml                   names, versions and their shares; SIGHUP reads it again
  curl -F file=@photo.jpg http://127.0.0.1:8000/predict
  IMAGO_API_KEY=... python src/serve.py ...                requests then need Authorization: Bearer ...

"""


def main() -> None:
    """Run the command of the command line; exit with 0 after a stop signal, 2 after an error of the user."""
    ignore_closed_pipes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        _check_packages()
        _serve(sys.argv[1:])
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _check_packages() -> None:
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{executable()} lacks {', '.join(missing)}; type pip install -e '.[serve]', or make setup.")


def _serve(arguments: list[str]) -> None:
    from imago.serve.settings import DEFAULTS, check_files, read_settings

    if {"-h", "--help"} & {*arguments}:
        print(_HELP + DEFAULTS.read_text("utf-8"))
        return
    if not IS_POSIX:
        raise ConfigError(
            "serve.py needs Linux or macOS, which can confine the processes that decode images; in Windows use WSL 2, "
            "or predict.py for files."
        )
    settings = read_settings(arguments)
    check_files(settings)
    api_key = os.environ.pop(_KEY_VARIABLE, None)  # decoders inherit the environment
    if api_key is not None and not (api_key := api_key.strip()):
        raise ConfigError(f"{_KEY_VARIABLE} is set, but empty; set it to a key, or unset it to serve without one.")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the service is ready to reload
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    listener = _listen(settings.host, settings.port)
    if listener.getsockname()[0] not in ("127.0.0.1", "::1") and not api_key:
        logging.getLogger(__name__).warning(
            "host=%s: everyone who reaches this address can use the service; set %s", settings.host, _KEY_VARIABLE
        )
    decoders = _start_decoders(settings)
    try:
        _run(partial(read_settings, arguments), decoders, api_key or "", listener)
    finally:
        decoders.kill()
    os._exit(0)  # the end of the interpreter would abort, where a thread still runs a network


def _start_decoders(settings: "Settings") -> "DecoderPool":
    """Start the process of the decoders first: it imports its packages while this one does, and sees none of it."""
    from imago.serve.decoder import DecoderLimits
    from imago.serve.decoding import DecoderPool

    limits = DecoderLimits(settings.decoder_memory_mb, settings.decoder_cpu_s, settings.max_pixels)
    return DecoderPool(settings.decoders, limits, settings.max_queue, settings.decoder_timeout_s)


def _run(
    read_settings: "Callable[[], Settings]", decoders: "DecoderPool", api_key: str, listener: socket.socket
) -> None:
    import resource

    import uvicorn

    from imago.serve.app import Service, create_app
    from imago.serve.metrics import Metrics
    from imago.serve.models import Models
    from imago.serve.protocol import HttpProtocol, Server

    metrics = Metrics()
    models = Models(read_settings, metrics)
    app = create_app(Service(models, decoders, metrics), api_key)
    names = ", ".join(printable(f"{name} ({', '.join(v)})") for name, v in models.settings.models.items())
    HttpProtocol.max_connections = max(_BACKLOG, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _NUM_FILES)
    HttpProtocol.silence_s = models.settings.body_timeout_s
    server = Server(
        uvicorn.Config(
            app,
            http=HttpProtocol,
            lifespan="on",  # the default ignores errors of the start
            ws="none",
            backlog=_BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # addresses of clients are not used
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(models.settings.stop_timeout_s),
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # restored by uvicorn, which then repeats the signal
        signal.signal(number, lambda *_: None if server.started else sys.exit(0))
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server.message = f"serving {names} at {address} (Ctrl-C stops it)"
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, which the first requests may reach before the service is ready.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
    """
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # Inherited by its connections; asyncio sets it only if the protocol is named. Without it, the two parts of an
        # answer wait 40 ms for the client's acknowledgment.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:  # the latter: a name that cannot be one
        reason = str(getattr(error, "strerror", error)).partition(" (")[0].lower()
        is_port = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        example = f"port={port + 1}" if is_port else "host=127.0.0.1"
        raise ConfigError(f"host={host} port={port}: {reason}; choose another one, e.g. {example}.") from error
