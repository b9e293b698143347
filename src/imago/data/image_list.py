"""Samples named in a CSV list, as a data set."""

from pathlib import Path
from typing import Any

from imago.data.csv_list import files_from_list, read_list
from imago.data.dataset import LabeledFiles
from imago.data.file_datamodule import FileDataModule
from imago.errors import ConfigError


class ImageListDataModule(FileDataModule):
    """A CSV with the columns path, label and, if it says so, split; paths start from `root`.

    Args:
        list_file: the CSV.
        root: the folder that paths start from; None takes the folder of the list.
        settings: the arguments of `FileDataModule`.

    Raises:
        ConfigError: without a list.
    """

    def __init__(self, list_file: str, root: str | None = None, **settings: Any) -> None:
        if not list_file:
            raise ConfigError("data.list_file has no value; give a CSV with the columns path,label and perhaps split.")
        self.list_file = Path(list_file).expanduser()
        super().__init__(root=root or str(self.list_file.parent), **settings)

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """Read the list; the classes are its labels, sorted."""
        rows = read_list(self.list_file)
        class_names = tuple(sorted({row.label for row in rows}))
        return class_names, files_from_list(self.root, rows, class_names)
