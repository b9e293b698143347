"""`python src/serve.py` starts, reports errors in one line, reloads, and leaves no process behind, however it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from onnx_files import write_channel_means
from served import Server, colored, encode
from warm_python import is_alive, warm_imago

from imago.data import shapes
from imago.paths import PROJECT_ROOT
from imago.serve.serve import _listen

pytestmark = pytest.mark.slow

RED = colored(250, 20, 20)
KEY = {"IMAGO_API_KEY": "sesame"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_channel_means(tmp_path / "colors.onnx")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a service with `start(*arguments)`; it is killed at the end of the test."""
    servers: list[Server] = []

    def run(*arguments: str, **environment: str) -> Server:
        servers.append(Server(*arguments, folder=tmp_path, **environment))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def serve(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "src/serve.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    return subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60)


def large_image() -> bytes:
    """Return an image that takes about half a second to decode."""
    import numpy as np

    return encode(np.zeros((6000, 6000, 3), np.uint8))


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_help_lists_every_setting():
    done = serve("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("python src/serve.py model=logs/latest", "max_body_mb: 25 ", "IMAGO_API_KEY"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is not set; type model=RUN or model=FILE.onnx"),
        (["model=missing.onnx"], "missing.onnx does not exist; model= is a directory of a run or an ONNX file"),
        (["model=tests"], "tests/export/model.onnx does not exist"),
        (["model=README.md"], "README.md is truncated or not an ONNX file"),
        (["model=x", "prot=1"], "prot=1: there is no setting 'prot'; did you mean port?"),
        (["model=" + 300 * "a"], "aaa does not exist"),
        (["model=README.md", "port=1", "host=192.0.2.1"], "host=192.0.2.1 port=1: cannot assign requested address"),
        (["model=README.md", "host=a..b"], "choose another one, e.g. host=127.0.0.1."),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(arguments: list[str], message: str):
    done = serve(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert message in done.stderr


def test_an_empty_key_is_an_error_and_not_an_open_service(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMAGO_API_KEY", "\n")
    done = serve("model=README.md")
    assert (done.returncode, done.stderr.startswith("error: IMAGO_API_KEY is set, but empty")) == (2, True)


def test_a_port_that_is_in_use_is_named(start: Callable, file: Path):
    port = start(f"model={file}").url.rpartition(":")[2]
    done = serve(f"model={file}", f"port={port}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"port={port}: address already in use; choose another one, e.g. port={int(port) + 1}" in done.stderr


def test_another_address_without_a_key_is_warned_of(start: Callable, file: Path):
    address = "127.0.0.2"
    assert "everyone who reaches this address" in start(f"model={file}", f"host={address}").output
    assert "everyone" not in start(f"model={file}", f"host={address}", **KEY).output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_answers_running_requests_and_exits_with_0(start: Callable, file: Path, number: int):
    server = start(f"model={file}")
    processes = server.processes()
    assert len(processes) >= 3
    answers: list[httpx.Response] = []
    image = large_image()
    client = threading.Thread(target=lambda: answers.append(server.post(image)))
    client.start()
    wait_until(lambda: max(process.cpu_percent() for process in processes[2:]) > 0)  # a decoder has begun
    assert server.stop(number) == 0
    client.join()
    assert [answer.status_code for answer in answers] == [200]
    wait_until(lambda: not any(is_alive(process.pid) for process in processes))


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_request_that_takes_too_long_does_not_keep_it_from_stopping(start: Callable, file: Path, is_repeated: bool):
    server = start(f"model={file}", "decoders=1", f"stop_timeout_s={100 if is_repeated else 1}")
    processes = server.processes()
    processes[2].suspend()
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(RED) + RED)
    time.sleep(0.5)
    if is_repeated:
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert server.stop(signal.SIGINT) == 0
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    connection.close()
    assert answer == b"" if is_repeated else b"503 Service" in answer and b'"code": "busy"' in answer
    assert "Traceback" not in server.output
    wait_until(lambda: not any(is_alive(process.pid) for process in processes))


def test_signals_to_all_processes_do_not_harm_running_requests(start: Callable, file: Path):
    server = start(f"model={file}")
    for process in server.processes()[1:]:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    assert server.post(RED).json()["class"] == "red"
    assert server.stop() == 0


def test_no_process_outlives_a_killed_server(start: Callable, file: Path):
    server = start(f"model={file}")
    processes = server.processes()
    image = large_image()
    client = threading.Thread(target=lambda: pytest.raises(httpx.HTTPError, server.post, image))
    client.start()
    time.sleep(0.2)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    client.join()
    wait_until(lambda: not any(is_alive(process.pid) for process in processes))


def test_a_killed_decoder_is_replaced(start: Callable, file: Path):
    server = start(f"model={file}", "decoders=1")
    worker = server.processes()[2]
    answers: list[httpx.Response] = []
    image = large_image()
    client = threading.Thread(target=lambda: answers.append(server.post(image)))
    client.start()
    wait_until(lambda: worker.cpu_percent() > 0)
    worker.kill()
    client.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (422, "corrupt_image")
    assert server.post(RED).json()["class"] == "red"


def test_it_runs_without_torch_lightning_and_hydra(file: Path, tmp_path: Path):
    code = (
        "import runpy, sys\n"
        "sys.modules.update(torch=None, lightning=None, hydra=None, omegaconf=None, scipy=None, pandas=None)\n"
        f"sys.argv = ['src/serve.py', 'model={file}', 'port=0']\n"
        "runpy.run_path('src/serve.py', run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environment, stdout=log)
        try:
            wait_until(lambda: "at http" in (tmp_path / "log").read_text())
            url = re.search(r"http://\S+", (tmp_path / "log").read_text())
            assert url is not None
            assert httpx.post(f"{url[0]}/predict", content=RED).json()["class"] == "red"
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_sighup_and_the_route_read_the_configuration_again(start: Callable, tmp_path: Path):
    for name, order in (("a", ("red", "green", "blue")), ("b", ("rot", "grün", "blau"))):
        write_channel_means(tmp_path / f"{name}.onnx", names=order)
    config = tmp_path / "models.yaml"
    config.write_text("models: {colors: {v1: a.onnx}}\nthreshold: 0.1\n")
    server = start(f"config={config}", **KEY)
    headers = {"Authorization": "Bearer sesame"}
    assert server.post(RED, headers=headers).json()["class"] == "red"
    config.write_text("models: {colors: {v1: a.onnx, v2: b.onnx}}\nweights: {colors: {v1: 0, v2: 1}}\n")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.post(RED, headers=headers).json()["class"] == "rot")
    config.write_text("models: {colors: {v1: a.onnx}}\n")
    assert httpx.post(f"{server.url}/admin/reload").status_code == 401
    ready = httpx.post(f"{server.url}/admin/reload", headers=headers).json()
    assert [*ready["models"]["colors"]] == ["v1"]
    assert server.post(RED, headers=headers).json()["class"] == "red"
    (tmp_path / "a.onnx").write_bytes(b"damaged")
    refused = httpx.post(f"{server.url}/admin/reload", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert server.post(RED, headers=headers).json()["class"] == "red"


def test_it_ends_with_the_window_of_its_terminal(file: Path):
    window, terminal = os.openpty()
    command = [sys.executable, "src/serve.py", f"model={file}", "port=0"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, preexec_fn=lambda: os.login_tty(terminal))
    os.close(terminal)
    output = b""
    while b"serving" not in output:
        output += os.read(window, 1000)
    process.send_signal(signal.SIGHUP)
    while b"reloaded" not in output:
        output += os.read(window, 1000)
    os.close(window)
    assert process.wait(30) == 0


def test_no_request_is_dropped_while_models_are_reloaded(start: Callable, tmp_path: Path):
    config = tmp_path / "models.yaml"
    config.write_text("models: {colors: {v1: a.onnx}}\n")
    file = write_channel_means(tmp_path / "a.onnx")
    server = start(f"config={config}")
    answers: list[int] = []
    has_ended = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=server.url) as client:
            while not has_ended.is_set():
                answers.append(client.post("/predict", content=RED).status_code)

    clients = [threading.Thread(target=send) for _ in range(3)]
    for client in clients:
        client.start()
    for number in range(5):
        write_channel_means(file, run_id=str(number))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda n=number: f'"run_id": "{n}"' in httpx.get(f"{server.url}/models").text)
    has_ended.set()
    for client in clients:
        client.join()
    assert {*answers} == {200}


def test_the_command_of_the_readme_serves_a_run_and_agrees_with_predict(
    start: Callable, exported_run: Path, tmp_path: Path
):
    assert "\npython src/serve.py model=logs/latest " in (PROJECT_ROOT / "README.md").read_text()
    pixels, _ = shapes.render_split("val", 1000)
    folder = tmp_path / "val"
    folder.mkdir()
    for index, image in enumerate(pixels):
        (folder / f"{index}.png").write_bytes(encode(image.transpose(1, 2, 0)))
    csv = tmp_path / "out.csv"
    done = warm_imago().run(
        "src/predict.py", f"run={exported_run}/export/model.onnx", f"input={folder}", f"output={csv}"
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads(csv.with_suffix(".json").read_text())["predictions"]
    server = start(f"model={exported_run}")
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/models").json()["models"][0]["name"] == exported_run.name
        for prediction in expected:
            answer = client.post("/predict", content=Path(prediction["file"]).read_bytes()).json()
            assert answer["class"] == prediction["predicted"]
            assert [entry["class"] for entry in answer["top_k"]] == [entry["class"] for entry in prediction["top_k"]]
            assert answer["confidence"] == pytest.approx(prediction["top_k"][0]["probability"], abs=1e-5)
            assert answer["sets"] == prediction["sets"]
            assert answer["sets"].keys() == {"90", "95"}
            assert answer["unlike_training"] == prediction["unlike_training"]
    assert len(expected) == len(pixels)


def test_answers_do_not_wait_for_acknowledgments():
    listener = _listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
