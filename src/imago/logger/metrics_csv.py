"""All logged numbers in one `metrics.csv`, in the run directory itself, that a resumed run continues."""

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from imago.errors import DataError


class MetricsCsv(Logger):
    """Keeps a row per logged step, on the disk at once; an empty cell means "not logged at this step".

    A resumed run continues the file: rows of steps that it does again are replaced.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        self._is_open = False
        self._tail = 0  # where in the file the last row starts: it may still grow

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: `config.yaml` in the run directory holds every setting."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of a step, beside those that are there already."""
        step = step or 0
        if not self._is_open:
            self.cut(step)
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(metrics)
        else:
            self._tail = self.path.stat().st_size if self.path.exists() else 0
            self._rows.append({"step": step, **metrics})
        new_columns = [name for name in metrics if name not in self._columns]
        self._columns += new_columns
        self._write_all() if new_columns else self._write_last()

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Read what an interrupted run left, and drop what this one, which goes on at `step`, will do again."""
        self._is_open = True
        if self.path.is_file():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames and "step" not in reader.fieldnames:
                    raise DataError(f"{self.path} has no column 'step'; move it away, and the run starts a new one.")
                self._columns = list(reader.fieldnames or self._columns)
                rows = [{name: value for name, value in row.items() if value} for row in reader]
            self._rows = [row | {"step": int(row["step"])} for row in rows if int(row["step"]) < step]
            self._write_all()

    def _write_all(self) -> None:
        lines = [_line(self._columns, dict(zip(self._columns, self._columns, strict=True)))]
        lines += [_line(self._columns, row) for row in self._rows]
        part = self.path.with_suffix(".csv.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(lines), newline="")
        os.replace(part, self.path)
        self._tail = self.path.stat().st_size - len(lines[-1].encode())

    def _write_last(self) -> None:
        with self.path.open("r+", newline="") as file:
            file.seek(self._tail)
            file.truncate()
            file.write(_line(self._columns, self._rows[-1]))


def _line(columns: list[str], row: dict[str, Any]) -> str:
    """Give one line of the file; 7 digits are what a float32 holds."""
    line = io.StringIO()
    values = (row.get(name, "") for name in columns)
    csv.writer(line).writerow([f"{value:.7g}" if isinstance(value, float) else value for value in values])
    return line.getvalue()
