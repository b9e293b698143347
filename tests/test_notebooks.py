"""Notebooks: no outputs, no training code, and they work on real runs."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from imago.paths import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


def code_cells(file: Path) -> list[dict]:
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_no_outputs_are_committed(file: Path):
    assert code_cells(file)
    assert [cell["id"] for cell in code_cells(file) if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_a_notebook_trains_nothing(file: Path):
    source = "\n".join("".join(cell["source"]) for cell in code_cells(file))
    assert re.findall(r"^\s*(?:!|%%bash)|\b(?:lightning|hydra|subprocess|optim|fit|backward)\b", source, re.M) == []


def test_analysis_of_runs_needs_no_torch():
    source = "\n".join("".join(cell["source"]) for cell in code_cells(PROJECT_ROOT / "notebooks" / "analysis.ipynb"))
    assert re.findall(r"\b(?:torch|imago\.training)\b", source) == []


@contextmanager
def opened(name: str, last: str, folder: Path) -> Iterator[Callable[..., nbformat.NotebookNode]]:
    """Yield a function that runs a copy of a notebook, always in one kernel, in an environment with more variables.

    The copy has one more cell at its end, which prints values of its tables.
    """
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / name, as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})

    def run(**environment: str) -> nbformat.NotebookNode:
        first = nbformat.v4.new_code_cell(f"import os; os.environ.update({environment!r})")
        cells = [first, *nbformat.read(PROJECT_ROOT / "notebooks" / name, as_version=4).cells]
        notebook.cells = [*cells, nbformat.v4.new_code_cell(last)]
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        return notebook

    with client.setup_kernel():
        yield run


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def printed(notebook: nbformat.NotebookNode) -> str:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.get("name") == "stdout")


@pytest.mark.slow
@pytest.mark.xdist_group("sweep")
def test_analysis_reads_compares_and_draws_a_sweep(tmp_path: Path, finished_sweep: Path):
    shutil.copytree(finished_sweep, tmp_path / "sweeps" / "sweep")
    last = "print(len(runs), len(chosen), seeds['num_seeds'].tolist(), seeds['val_std'].notna().all())"
    with opened("analysis.ipynb", last, tmp_path) as executed:
        notebook = executed(IMAGO_LOGS_DIR=str(tmp_path))
        assert printed(notebook).endswith("4 4 [2, 2] True\n")
        assert len(outputs(notebook, "image/png")) == 5  # with the test of the best run, by the sweep

        shutil.rmtree(next(tmp_path.glob("sweeps/sweep/*/eval")))
        notebook = executed()
        assert len(outputs(notebook, "image/png")) == 3
        missing = re.findall(r"create it with: \S*python \S*src/eval\.py run=(\S+)", printed(notebook))
        assert len(missing) == 2


@pytest.mark.slow
def test_a_model_predicts_drawn_shapes_and_image_files(tmp_path: Path, finished_run: Path):
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for name in ("a, b.png", "below/ü.JPG"):
        Image.new("RGB", (60, 40), "red").save(tmp_path / "photos" / name)
    last = "print(predictions.shape, tuple(features.shape), (similarity.to_numpy().diagonal() == 1).all())"
    with opened("use_a_model.ipynb", last, tmp_path) as executed:
        notebook = executed(IMAGO_RUN=str(finished_run))
        assert printed(notebook) == "torch.Size([1, 10])\n(12, 4) (12, 512) True\n"
        assert len(outputs(notebook, "image/png")) == 1 + 4  # the images, and explanations of four of them
        (marked,) = [text for text in outputs(notebook, "text/html") if "unlike the training images" in text]
        assert "90 % set" in marked
        assert printed(executed(IMAGO_IMAGES_DIR=str(tmp_path / "photos"))).endswith("(2, 4) (2, 512) True\n")
