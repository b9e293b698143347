"""The table of formats: unknown names, precisions and packages are refused in one line before torch is loaded."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from imago.errors import ConfigError
from imago.export.export import export
from imago.export.formats import FORMATS, Options, report_file
from imago.paths import PROJECT_ROOT


@pytest.fixture(scope="module")
def settings(compose: Callable) -> DictConfig:
    return compose("run=x", config_name="export")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.yaml", "checkpoints/best.ckpt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "onx"}, "format=onx is not one of onnx, torch_export, state_dict, "),
        ({"format": "onx"}, "; did you mean onnx?"),
        ({"format": "coreml"}, "format=coreml is not one of onnx, "),
        ({"precision": "q4"}, "precision=q4 is not one of fp32, fp16, int8 of format=onnx."),
        ({"precision": "int7"}, "; did you mean int8?"),
        ({"format": "state_dict", "precision": "bf16"}, "precision=bf16 is not one of fp32 of format=state_dict."),
        ({"format": "state_dict", "opset": 18}, "opset=18 is a setting of format=onnx; format=state_dict has none."),
    ],
)
def test_a_setting_without_effect_is_one_line(settings: DictConfig, changes: dict, text: str, run: Path):
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        export(OmegaConf.merge(settings, {"run": str(run)}, changes))
    assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_names_the_command_that_installs_it(
    name: str, settings: DictConfig, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], packages=("no-such-package",)))
    install = f"make export-env FORMAT={name}" if FORMATS[name].environment else "make setup"
    with pytest.raises(ConfigError) as caught:
        export(OmegaConf.merge(settings, {"run": str(run), "format": name}))
    expected = f"format={name} needs no-such-package, not installed; run {install}, then use .venv/bin/python."
    assert str(caught.value) == expected


def test_every_format_is_described_in_the_help_and_in_the_documentation(without_torch: Callable):
    shown, page = without_torch("src/export.py", "--help").stdout, (PROJECT_ROOT / "docs/export.md").read_text()
    makefile, gitignore = (PROJECT_ROOT / "Makefile").read_text(), (PROJECT_ROOT / ".gitignore").read_text()
    for name, format in FORMATS.items():
        assert re.search(rf"\b{name}\b", shown)
        assert f"| `{name}` |" in page
        assert not format.environment or f"PACKAGES_{name} :=" in makefile
    assert "/.venv-*/" in gitignore
    assert len(page.splitlines()) <= 120


def test_a_file_has_the_precision_in_its_name():
    assert FORMATS["onnx"].file_of("fp32") == "model.onnx"
    assert FORMATS["onnx"].file_of("int8") == "model_int8.onnx"
    assert FORMATS["openvino"].file_of("bf16") == "openvino_bf16"


def test_versions_are_those_of_the_installed_packages():
    import numpy

    assert replace(FORMATS["onnx"], packages=("numpy", "no-such-package")).versions() == {"numpy": numpy.__version__}


def test_reports_have_names_of_their_own():
    names = {report_file(Options(name, precision)) for name in FORMATS for precision in FORMATS[name].precisions}
    assert len(names) == sum(len(format.precisions) for format in FORMATS.values())
    assert {"export_report.json", "export_report_int8.json", "export_report_openvino_bf16.json"} <= names
