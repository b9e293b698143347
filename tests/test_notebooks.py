"""Notebooks: committed without outputs, free of training code, and working on real runs."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from short_runs import SHORT, train

from imago.paths import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


def code_cells(file: Path) -> list[dict]:
    return [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_no_outputs_are_committed(file: Path):
    assert code_cells(file)
    assert [cell["id"] for cell in code_cells(file) if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_a_notebook_trains_nothing(file: Path):
    source = "\n".join("".join(cell["source"]) for cell in code_cells(file))
    assert re.findall(r"^\s*(?:!|%%bash)|\b(?:torch|lightning|hydra|subprocess|imago\.run)\b", source, re.M) == []


def make_confusion(run: Path, command) -> None:
    if (PROJECT_ROOT / "src" / "eval.py").exists():
        done = command("src/eval.py", f"run={run}", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        (run / "eval" / "test").mkdir(parents=True)
        (run / "eval" / "test" / "confusion.csv").write_text(",arrow,bars\narrow,5,1\nbars,2,4\n")


def executed(log_dir: Path, monkeypatch) -> nbformat.NotebookNode:
    """Run a copy of the notebook, with a last cell that tells what is in its tables."""
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / "analysis.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print(len(runs), len(chosen), seeds['n'].tolist())"))
    monkeypatch.setenv("IMAGO_LOGS_DIR", str(log_dir))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(log_dir)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def printed(notebook: nbformat.NotebookNode) -> str:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.get("name") == "stdout")


@pytest.mark.slow
def test_analysis_reads_compares_and_draws_a_sweep(tmp_path: Path, command, monkeypatch):
    train(tmp_path, "-m", *SHORT, "trainer.max_epochs=1", "optimizer.lr=1e-3,4e-3", "seed=1,2", "run_name=sweep")
    notebook = executed(tmp_path, monkeypatch)
    assert printed(notebook).endswith("4 4 [2, 2]\n")
    assert len(outputs(notebook, "image/png")) == 3
    assert "make it with: python src/eval.py run=" in printed(notebook)

    for run in (tmp_path / "sweeps" / "sweep").glob("[0-3]"):
        make_confusion(run, command)
    assert len(outputs(executed(tmp_path, monkeypatch), "image/png")) == 4
