"""Compare the formats and precisions that are installed: accuracy, latency, throughput, size and memory.

Each is written anew to a temporary directory and measured in processes of its own, in turn, for several rounds.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from imago.analysis.plots import plot_speed, save_figure
from imago.errors import UserError
from imago.export.formats import FORMATS
from imago.export.measure import BATCH_SIZE, Request
from imago.files import write_json, write_text
from imago.runs.provenance import describe_process
from imago.statistics.intervals import wilson_interval
from imago.statistics.paired import PairedComparison, compare_paired
from imago.text import count_text, counted, markdown_table, percent_text, range_text, shortened, table_lines

log = logging.getLogger(__name__)

NUM_ROUNDS = 3
_NOT_MEASURED = ("state_dict", "safetensors")  # weights only: PyTorch runs them as it runs the checkpoint
_HEADER = [
    *("", "accuracy", "95 % interval", "difference", "p50 ms", "p95 ms"),
    *("images/s", "MB", "memory MB", "package MB", "note"),
]


@dataclass
class Row:
    """The results of one format and precision.

    Attributes:
        name: e.g. "onnx int8"; the first row is the checkpoint.
        path: the artefact, or the checkpoint.
        module, runtime: as in `Request`.
        python: the interpreter that measures it.
        num_bytes: size of the artefact.
        reason: why there are no results; empty if there are.
        num_correct: of the images.
        against_checkpoint: paired comparison of the checkpoint (a) with this row (b).
        by_threads: for each number of threads, the medians over the rounds of what `measure` returns.
    """

    name: str
    path: Path
    module: str
    runtime: str
    python: str = sys.executable
    num_bytes: int = 0
    reason: str = ""
    num_correct: int = 0
    against_checkpoint: PairedComparison | None = None
    by_threads: dict[int, dict[str, float]] = field(default_factory=dict)


def write_rows(directory: Path, write: Callable[[str, str, Path], dict[str, Any]]) -> Iterator[Row]:
    """Write each artefact to `directory`; one that cannot be written becomes a row with the reason.

    `write` takes format, precision and path, and returns the report of the artefact; it raises a `UserError`.
    """
    measured = {name: format for name, format in FORMATS.items() if name not in _NOT_MEASURED}
    for name, format, precision in ((name, form, part) for name, form in measured.items() for part in form.precisions):
        path = directory / format.file_of(precision)
        row = Row(f"{name} {precision}", path, format.module, format.runtime, format.python)
        if missing := format.missing_packages():
            row.reason = f"not installed: {', '.join(missing)}; {format.install}"
        else:
            try:
                row.num_bytes = write(name, precision, path)["num_bytes"]
            except UserError as error:
                row.reason = str(error)
        yield row


def measure_rows(
    rows: Sequence[Row], images: Path, labels: np.ndarray, num_threads: Sequence[int], trust: Sequence[str] = ()
) -> None:
    """Measure every row without a reason, in turn, `NUM_ROUNDS` times for each number of threads.

    Args:
        rows: the first is the checkpoint; the results are written to them.
        images: .npy file with uint8 (N, 3, S, S), in a directory for temporary files.
        labels: the true labels (N,).
        num_threads: of the computation.
        trust: as in `Request`.

    Raises:
        UserError: if the checkpoint cannot be measured.
    """
    is_correct: dict[str, np.ndarray] = {}
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    turns = [(threads, row) for _ in range(NUM_ROUNDS) for threads in num_threads for row in rows]
    for threads, row in tqdm(turns, desc="measuring", unit="process", leave=False, disable=None):
        if row.reason:
            continue
        file = str(images.with_name("labels.npy")) if row.name not in is_correct else ""
        paths = {"images": str(images), "result": str(images.with_name("result.json")), "labels": file}
        request = Request(
            row.module, str(row.path), num_threads=threads, runtime=row.runtime, trust=tuple(trust), **paths
        )
        result = _run(request, images.with_name("request.json"), row)
        if result is not None:
            measured.setdefault((row.name, threads), []).append(result)
            if file:
                is_correct[row.name] = np.load(file) == labels
    if rows[0].reason:
        raise UserError(f"the checkpoint cannot be measured: {rows[0].reason}")
    for row in rows:
        if not row.reason:
            row.num_correct = int(is_correct[row.name].sum())
            row.against_checkpoint = compare_paired(is_correct[rows[0].name], is_correct[row.name])
            for threads in num_threads:
                results = measured[row.name, threads]
                row.by_threads[threads] = {key: median(result[key] for result in results) for key in results[0]}


def _run(request: Request, file: Path, row: Row) -> dict[str, float] | None:
    """Measure in a process; return its numbers, or None with a reason in the row."""
    file.write_text(json.dumps(asdict(request)), "utf-8")
    variables = {**os.environ, "OMP_NUM_THREADS": str(request.num_threads)}
    command = [row.python, "-P", "-m", "imago.export.measure", str(file)]
    done = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        log.debug("%s\n%s", row.name, done.stderr)
        row.reason = lines[-1]
        return None
    return json.loads(Path(request.result).read_text("utf-8"))


def benchmark_tables(rows: Sequence[Row], num_images: int) -> dict[int, list[list[str]]]:
    """Return a table of cells for each number of threads, with a header."""
    tables: dict[int, list[list[str]]] = {}
    for threads in rows[0].by_threads:
        tables[threads] = [_HEADER]
        for row in rows:
            if row.reason or row.against_checkpoint is None:
                tables[threads].append([row.name, *[""] * (len(_HEADER) - 2), shortened(row.reason, 80)])
                continue
            numbers, paired = row.by_threads[threads], row.against_checkpoint
            interval = range_text(*wilson_interval(row.num_correct, num_images))
            low, high = paired.interval_95
            difference = f"{100 * paired.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            tables[threads].append(
                [row.name, percent_text(row.num_correct / num_images), interval, "" if row is rows[0] else difference,
                 f"{numbers['p50_ms']:.2f}", f"{numbers['p95_ms']:.2f}", count_text(numbers["images_per_s"]),
                 f"{row.num_bytes / 1e6:.2f}", count_text(numbers["peak_memory_mb"]),
                 count_text(numbers["install_mb"]), ""]
            )  # fmt: skip
    return tables


def write_benchmark(rows: Sequence[Row], directory: Path, num_images: int, split: str, title: str) -> Path:
    """Print the tables; write benchmark.json, .md and .png, or benchmark_FILE.* of one FILE; return the second."""
    tables = benchmark_tables(rows, num_images)
    sections = []
    for threads, table in tables.items():
        lines = table_lines(table, right=range(1, len(table[0])))
        log.info("\n%s\n%s", counted(threads, "CPU thread"), "\n".join(lines))
        sections += [f"## {counted(threads, 'CPU thread')}", "", *markdown_table(table), ""]
    about = (
        f"{num_images:,} images of {split}. Difference: points of accuracy against the checkpoint, with its paired "
        f"95 % interval. Latency: of one image; images/s: in batches of {BATCH_SIZE}; medians of {NUM_ROUNDS} rounds. "
        "Memory: peak of the process. Package: the runtime without what it depends on."
    )
    content = {
        "title": title,
        "environment": describe_process(),
        "split": split,
        "num_images": num_images,
        "rows": [*map(_record, rows)],
    }
    stem = "_".join(["benchmark", *(Path(row.name).stem for row in rows if row.name.lower().endswith(".onnx"))])
    write_json(directory / f"{stem}.json", content)
    write_text(directory / f"{stem}.md", "\n".join([f"# {title}", "", about, "", *sections]))
    measured = [row for row in rows if row.by_threads]
    intervals = np.array([wilson_interval(row.num_correct, num_images) for row in measured])
    figure = plot_speed(
        [row.name for row in measured],
        np.array([row.num_correct / num_images for row in measured]),
        intervals,
        np.array([row.by_threads[min(row.by_threads)]["p50_ms"] for row in measured]),
        np.array([row.num_bytes for row in measured]),
        f"{title}, {counted(min(tables), 'CPU thread')}",
    )
    save_figure(figure, directory / f"{stem}.png")
    return directory / f"{stem}.md"


def _record(row: Row) -> dict[str, Any]:
    values = {key: value for key, value in asdict(row).items() if key not in ("path", "module", "python")}
    return values | {"file": row.path.name}
