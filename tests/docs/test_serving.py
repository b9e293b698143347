"""The service runs with the packages of docs/serving/requirements.txt and the files of the Dockerfile alone."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from onnx_files import write_channel_means
from served import colored

from imago.paths import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "docs" / "serving"
MAX_SIZE_MB = 400


def copy_sources(target: Path) -> None:
    """Copy what the Dockerfile copies into /app."""
    sources = re.findall(r"^COPY (\S+) /app/(\S+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert sources
    for source, name in sources:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        path = PROJECT_ROOT / source
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target / name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prediction_from_a_fresh_environment(tmp_path: Path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "-r", FOLDER / "requirements.txt"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "No matching distribution" not in done.stderr and "onnection" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    size_mb = sum(file.stat().st_size for file in (tmp_path / "venv").rglob("*") if file.is_file()) / 2**20
    print(f"{size_mb:.0f} MB")
    assert size_mb < MAX_SIZE_MB
    copy_sources(tmp_path / "app")
    model = write_channel_means(tmp_path / "colors.onnx")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with (tmp_path / "log").open("w+") as log:
        command = [python, "src/serve.py", f"model={model}", "port=0"]
        process = subprocess.Popen(command, cwd=tmp_path / "app", env=environment, stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + 60
            while not (match := re.search(r"at (http://\S+)", (tmp_path / "log").read_text())):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end_s
                time.sleep(0.1)
            assert httpx.post(f"{match[1]}/predict", content=colored(9, 250, 9)).json()["class"] == "green"
        finally:
            process.terminate()
        assert process.wait(30) == 0
