"""Pictures in folders named after their classes, as a data set."""

import logging
from typing import Any

from imago.data.dataset import LabelledFiles
from imago.data.file_datamodule import FileDataModule
from imago.data.image_folder import Ignored, find_splits, list_pictures, list_training_classes

log = logging.getLogger(__name__)


class ImageFolderDataModule(FileDataModule):
    """`root` holds train/, val/ and test/ with a folder for each class, or some of the three, or the class folders.

    Args:
        settings: the arguments of `FileDataModule`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabelledFiles]]:
        """List the pictures; the classes are those of the training pictures."""
        ignored = Ignored()
        folders = find_splits(self.root, ignored)
        class_names = list_training_classes(self.root, folders["train"])
        found = {split: list_pictures(self.root, folder, class_names, ignored) for split, folder in folders.items()}
        self.ignored = ignored.entries
        if note := ignored.summary():
            log.info("%s", note)
        return class_names, found
