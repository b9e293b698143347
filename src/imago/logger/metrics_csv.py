"""Log all values to `metrics.csv` in the run directory; a resumed run continues the file."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from imago.errors import DataError
from imago.files import write_text


class MetricsCsv(Logger):
    """Write one row per logged step at once; an empty cell means "not logged at this step".

    A resumed run continues the file `path`, and replaces the rows of steps that are trained again.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        self._is_open = False
        self._last_row_start = 0  # byte offset of the last row, to which values may be added

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` in the run directory contains every setting."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        step = step or 0
        if not self._is_open:
            self.truncate(step)
        if not self._rows or self._rows[-1]["step"] != step:
            self._last_row_start = self.path.stat().st_size if self.path.exists() else 0
            self._rows.append({"step": step})
        self._rows[-1].update(metrics)
        new_columns = [name for name in metrics if name not in self._columns]
        self._columns += new_columns
        if new_columns:
            self._write_all()
            return
        with self.path.open("r+", encoding="utf-8", newline="") as file:
            file.seek(self._last_row_start)
            file.truncate()
            file.write(_format_row(self._rows[-1].get(name, "") for name in self._columns))

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Read the file of an interrupted run, and remove the rows from `step` on."""
        self._is_open = True
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames and "step" not in reader.fieldnames:
                    raise DataError(f"{self.path} has no column 'step'; move it away, and the run starts a new one.")
                self._columns = list(reader.fieldnames or self._columns)
                rows = [{name: value for name, value in row.items() if value} for row in reader]
            self._rows = [row | {"step": int(row["step"])} for row in rows if int(row["step"]) < step]
            self._write_all()

    def _write_all(self) -> None:
        lines = [_format_row(self._columns)]
        lines += [_format_row(row.get(name, "") for name in self._columns) for row in self._rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(lines))
        self._last_row_start = self.path.stat().st_size - len(lines[-1].encode())


def _format_row(values: Any) -> str:
    """Format one row; a float32 has 7 significant digits."""
    line = io.StringIO()
    csv.writer(line).writerow([f"{value:.7g}" if isinstance(value, float) else value for value in values])
    return line.getvalue()
