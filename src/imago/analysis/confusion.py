"""The confusion matrix that an evaluation left in a run's folder, as a table."""

from pathlib import Path

import pandas as pd
from pandas import DataFrame

from imago.analysis.evaluation import eval_command
from imago.errors import DataError


def load_confusion(run: Path | str, split: str = "test") -> DataFrame:
    """Read `eval/<split>/confusion.csv` of a run.

    Args:
        run: the run's folder.
        split: which images were evaluated.

    Returns:
        Counts, int64 (K, K): the true classes are the index, the predicted ones the columns.

    Raises:
        DataError: if it is not there, telling how to make it, or damaged.
    """
    file = Path(run) / "eval" / split / "confusion.csv"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)  # classes may be called 007 or NA
        counts = table.set_index(table.columns[0]).astype("int64")
    except FileNotFoundError:
        raise DataError(f"{file} is missing; make it with: {eval_command(run, split)}") from None
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{file} cannot be read: {error}") from None
    if list(counts.index) != list(counts.columns):
        raise DataError(f"{file} is damaged: its rows and columns do not name the same classes.")
    return counts.rename_axis(index="true class", columns="predicted class")
