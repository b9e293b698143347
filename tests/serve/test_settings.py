"""Settings come from the YAML, a file and the command line; each that cannot work is named as typed."""

import os
from pathlib import Path

import pytest
import yaml

from imago.errors import ConfigError, DataError
from imago.resources import available_cores
from imago.serve.settings import DEFAULTS, Settings, check_files, read_settings

MODELS = "models: {flowers: {v1: a.onnx, v2: sub/b.onnx}, insects: {1: c.onnx}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(MODELS)
    return file


def message_of(*arguments: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        read_settings(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_yaml():
    settings = read_settings(["model=a.onnx"])
    expected = yaml.safe_load(DEFAULTS.read_text())
    cores = available_cores()
    del expected["model"], expected["config"]
    models = {"models": {"a": {"v1": Path("a.onnx")}}, "weights": {"a": {"v1": 1.0}}}
    assert vars(settings) == models | expected | {"threads": cores, "decoders": cores}
    assert {name: type(value).__name__ for name, value in vars(settings).items() if name not in models} == {
        name: kind.__name__ for name, kind in Settings.__annotations__.items() if name not in models
    }


def test_a_run_is_its_exported_file_and_its_name(tmp_path: Path):
    (tmp_path / "my run" / "export").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("my run")
    for typed in (tmp_path / "my run", tmp_path / "latest", tmp_path / "my run" / "export" / "model.onnx"):
        ((name, versions),) = read_settings([f"model={typed}"]).models.items()
        assert name == "my run"
        assert os.path.samefile(versions["v1"].parent, tmp_path / "my run" / "export")


def test_several_models_keep_their_order():
    assert [*read_settings(["model=[b.onnx, a.onnx]"]).models] == ["b", "a"]


def test_paths_in_a_file_start_at_its_directory_and_the_first_version_gets_all_requests(config: Path):
    settings = read_settings([f"config={config}"])
    folder = config.parent
    assert settings.models == {
        "flowers": {"v1": folder / "a.onnx", "v2": folder / "sub" / "b.onnx"},
        "insects": {"1": folder / "c.onnx"},
    }
    assert settings.weights == {"flowers": {"v1": 1.0, "v2": 0.0}, "insects": {"1": 1.0}}


def test_a_typed_model_takes_no_weights_of_the_models_of_the_file(config: Path):
    config.write_text(MODELS + "weights: {flowers: {v1: 9, v2: 1}}\nthreshold: 0.5\n", encoding="utf-8")
    settings = read_settings([f"config={config}", "model=c.onnx"])
    assert (settings.weights, settings.threshold) == ({"c": {"v1": 1.0}}, 0.5)


def test_a_request_cannot_have_more_images_than_may_wait():
    assert read_settings(["model=a.onnx", "max_files=8", "max_queue=8"]).max_files == 8
    fault = "max_files=9 is more than max_queue=8, the images that may wait; type fewer."
    assert message_of("model=a.onnx", "max_files=9", "max_queue=8") == fault


def test_weights_are_shares(config: Path):
    config.write_text(MODELS + "weights: {flowers: {v1: 9, v2: 1}}\n", encoding="utf-8")
    assert read_settings([f"config={config}"]).weights["flowers"] == {"v1": 0.9, "v2": 0.1}


def test_the_command_line_takes_precedence_over_the_file(config: Path):
    config.write_text(MODELS + "port: 81\nthreshold: 1\n", encoding="utf-8")
    settings = read_settings([f"config={config}", "port=82"])
    assert (settings.port, settings.threshold, settings.host) == (82, 1.0, "127.0.0.1")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model", "model: settings are typed key=value, e.g. model=logs/latest; --help lists them."),
        ("--port=1", "--port=1: there is no setting '--port'; did you mean port?"),
        ("port=x", "port=x: expected a whole number, 0 or more, and at most 65535; e.g. port=8000."),
        ("port=70000", "port=70000: expected a whole number"),
        ("decoder_memory_mb=1", "decoder_memory_mb=1: expected a whole number, 512 or more"),
        ("threads=0", "threads=0: expected a whole number, above 0"),
        ("threads=1.5", "threads=1.5: expected a whole number"),
        ("max_pixels=true", "max_pixels=True: expected a whole number"),
        ("threshold=2", "threshold=2: expected a number, 0 or more, and at most 1"),
        ("body_timeout_s=.inf", "body_timeout_s=inf: expected a number, above 0"),
        ("access_log=2", "access_log=2: expected true or false."),
        ("port=2026-13-45", "port=2026-13-45: the value cannot be read"),
        ("port=[", "port=[: the value cannot be read; type e.g. port=8000."),
        ("config=missing.yaml", "missing.yaml cannot be read: No such file or directory; check config=FILE.yaml."),
        ("model=[a.onnx,b/a.onnx]", "model=b/a.onnx: two models are named 'a'; name them in a file"),
    ],
)
def test_a_setting_that_cannot_work_is_named(typed: str, message: str):
    assert message_of("model=a.onnx", typed).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [a.onnx]", "expected models: {NAME: {VERSION: PATH}}, got ['a.onnx']"),
        ("models: {a: a.onnx}", "expected models: {NAME: {VERSION: PATH}}, got 'a.onnx' for 'a'"),
        ("models: {a/b: {v1: a.onnx}}", "'a/b' cannot be a part of an address"),
        ("models: {a: {1.10: a.onnx}}", "1.1 cannot be a part of an address, choose another name, or put it in quotes"),
        ("models: {..: {v1: a.onnx}}", "'..' cannot be a part of an address"),
        ("model: a.onnx\nprot: 1", "prot: there is no setting 'prot'; did you mean port?"),
        ("- 1", "has no settings"),
        (MODELS + "max_batch: 4\nmax_batch: 8", "is not YAML (max_batch is there twice"),
        ("models: {a: {v1: a.onnx}, a: {v2: b.onnx}}", "is not YAML (a is there twice"),
        (MODELS + "model: a.onnx", "model and models are set; list all under models."),
        ("model: a.onnx\nconfig: other.yaml", "config: there is no setting 'config'"),
        ("a: [", "is not YAML"),
        (MODELS + "weights: {x: {v1: 1}}", "weights: x: there is no x in models."),
        (MODELS + "weights: {flowers: {v3: 1}}", "weights: flowers: there is no v3 in models."),
        (MODELS + "weights: {flowers: {v1: 0}}", "expected numbers of 0 or more, not all of them 0."),
        (MODELS + "weights: {flowers: {v1: -1}}", "expected numbers of 0 or more"),
        (MODELS + "weights: 3", "weights=3: expected weights: {NAME: {VERSION: SHARE}}."),
    ],
)
def test_a_file_that_cannot_work_is_named(config: Path, content: str, message: str):
    config.write_text(content, encoding="utf-8")
    assert message in message_of(f"config={config}")


def test_a_run_that_is_not_exported_gets_the_command(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(DataError, match=r"the run is not exported yet, type \S+ src/export.py run=") as caught:
        check_files(read_settings([f"model={tmp_path}"]))
    assert str(caught.value).endswith(f"run={tmp_path}")
