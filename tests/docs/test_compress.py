"""The ratios in docs/compress.md are those of the stored benchmarks."""

import json

import pytest

from imago.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="a project made from this one has no stored results")


def ratio(network: str, name: str, other: str, figure: str) -> str:
    """Divide a figure of two formats, with one thread."""
    rows = json.loads((RESULTS / f"export_{network}.json").read_text())["rows"]
    figures = {row["name"]: row["by_threads"]["1"][figure] for row in rows if row.get("by_threads")}
    return f"{figures[name] / figures[other]:.{2 if figure == 'p50_ms' else 1}f}"


def test_the_ratios_are_those_of_the_stored_benchmarks():
    page = " ".join((PROJECT_ROOT / "docs" / "compress.md").read_text().split())
    onnx, int8 = (ratio("simple_cnn", name, "checkpoint", "p50_ms") for name in ("onnx fp32", "onnx int8"))
    assert f"ONNX Runtime takes {onnx} and int8 {int8} of the time of one image" in page
    faster = [ratio("simple_cnn", name, "checkpoint", "images_per_s") for name in ("onnx int8", "openvino bf16")]
    assert f"int8 computes {faster[0]} and OpenVINO in bf16 {faster[1]} times as many images" in page
    resnet, squeezenet, simple = (
        ratio(network, "onnx int8", "onnx fp32", "p50_ms") for network in ("resnet18", "squeezenet", "simple_cnn")
    )
    times = f"{resnet} of the time of ONNX fp32 for ResNet-18, {squeezenet} for SqueezeNet and {simple} for SimpleCNN"
    assert f"int8 takes {times}" in page
