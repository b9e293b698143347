"""docs/serving.md: the table has every setting, the files exist, and its commands and programs work."""

import json
import os
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from onnx_files import write_channel_means
from PIL import Image
from served import Server

from imago.paths import PROJECT_ROOT

DOCS = PROJECT_ROOT / "docs"
PAGE = (DOCS / "serving.md").read_text()
SETTINGS = yaml.safe_load((PROJECT_ROOT / "configs" / "serve.yaml").read_text())
CURLS = [re.sub(r"\s+#.*", "", line) for line in PAGE.splitlines() if line.startswith("curl ")]
KEY = "0123456789abcdef"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_has_each_setting_with_its_default():
    table = PAGE.split("| setting | default | meaning |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE))
    assert {key: yaml.safe_load(value) for key, value in rows.items()} == SETTINGS


def test_its_links_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    assert {Path(link).name for link in links} >= {"nginx.conf", "imago.service", "kubernetes.yaml", "Dockerfile"}
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_its_errors_are_those_of_the_service():
    from imago.serve.errors import STATUS

    rows = re.findall(r"^\| ([\d, ]+) \| (`[\w`, ]+) \|", PAGE, re.MULTILINE)
    written = {code: numbers for numbers, codes in rows for code in re.findall(r"\w+", codes)}
    assert written.keys() == STATUS.keys() - {"internal_error"}
    assert [code for code in written if str(STATUS[code]) not in written[code]] == []


def test_the_files_of_kubernetes_and_systemd_name_settings_and_addresses_that_exist():
    deployment, _ = yaml.safe_load_all((DOCS / "serving" / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {argument.partition("=")[0] for argument in container["args"]} <= SETTINGS.keys()
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"/ready", "/health"}
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > container["lifecycle"]["preStop"]["sleep"]["seconds"] + SETTINGS["stop_timeout_s"]
    unit = (DOCS / "serving" / "imago.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > SETTINGS["stop_timeout_s"]
    nginx = (DOCS / "serving" / "nginx.conf").read_text()
    assert int(re.search(r"client_max_body_size (\d+)m", nginx)[1]) > SETTINGS["max_body_mb"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the page names."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("photo.jpg", "other.jpg"):
        Image.new("RGB", (120, 100), "red").save(folder / name)
    (folder / "RUN" / "export").mkdir(parents=True)
    write_channel_means(folder / "RUN" / "export" / "model.onnx", size=96)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = Server(f"model={folder / 'RUN'}", "decoders=1", folder=folder, IMAGO_API_KEY=KEY)
    yield f"{server.url}/"
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", CURLS)
def test_the_command_is_answered(command: str, address: str, folder: Path):
    if "Authorization" not in command:
        command += f" -H 'Authorization: Bearer {KEY}'"
    command = command.replace("http://127.0.0.1:8000/", address)
    done = subprocess.run(
        ["bash", "-c", f"{command} --silent --fail-with-body"],
        cwd=folder,
        env=os.environ | {"IMAGO_API_KEY": KEY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    if "predict" in command:
        predictions = answer.get("predictions", [answer])
        assert [prediction["class"] for prediction in predictions] == ["red"] * (2 if "other.jpg" in command else 1)
        assert ("crop" in answer) == ("crop=true" in command)


@pytest.mark.slow
def test_the_models_of_the_example_are_read(folder: Path):
    from imago.serve.settings import read_settings

    (example,) = blocks("yaml")
    (folder / "models.yaml").write_text(example.replace("../logs/insects", "RUN"))
    settings = read_settings([f"config={folder / 'models.yaml'}"])
    assert settings.weights["flowers"] == {"v1": 0.9, "v2": 0.1}
    assert settings.models["insects"]["v1"].name == "model.onnx"
    assert settings.threshold == 0.5


@pytest.mark.slow
def test_the_program_that_asks_for_a_class_prints_it(folder: Path, capsys, monkeypatch):
    (program,) = (text for text in blocks("python") if "urllib" in text)
    server = Server(f"model={folder / 'RUN'}", "decoders=1", folder=folder)
    (folder / "ask.py").write_text(program.replace("http://127.0.0.1:8000", server.url))
    monkeypatch.chdir(folder)
    runpy.run_path("ask.py")
    server.stop()
    assert capsys.readouterr().out == "red\n"


def test_the_repository_for_triton_has_the_shapes_of_the_file(folder: Path, monkeypatch):
    (program,) = (text for text in blocks("python") if "config.pbtxt" in text)
    (folder / "triton.py").write_text(program)
    monkeypatch.chdir(folder)
    runpy.run_path("triton.py")
    written = (folder / "triton" / "flowers" / "config.pbtxt").read_text()
    assert "dims: [ 3, 96, 96 ]" in written
    assert (folder / "triton" / "flowers" / "1" / "model.onnx").exists()
    assert (folder / "triton" / "flowers" / "labels.txt").read_text().splitlines()[:2] == ["red", "green"]
