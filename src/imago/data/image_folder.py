"""Samples in folders named after their classes, as a data set."""

import logging
from typing import Any

from imago.data.dataset import LabeledFiles
from imago.data.file_datamodule import FileDataModule
from imago.data.folder_listing import Ignored, find_splits, list_images, list_training_classes

log = logging.getLogger(__name__)


class ImageFolderDataModule(FileDataModule):
    """`root` holds train/, val/ and test/ with a folder for each class, or some of the three, or the class folders.

    Args:
        settings: the arguments of `FileDataModule`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    def list_files(self) -> tuple[tuple[str, ...], dict[str, LabeledFiles]]:
        """List the images; the classes are those of the training images."""
        ignored = Ignored()
        folders = find_splits(self.root, ignored)
        class_names = list_training_classes(self.root, folders["train"])
        found: dict[str, LabeledFiles] = {}
        # Test first: a file that has a second name among the training images stays where it is tested.
        for split in ("test", "val", "train"):
            if split in folders:
                found[split] = list_images(self.root, folders[split], class_names, ignored)
        ignored.entries.sort(key=lambda entry: not entry[0].startswith(f"{folders['train'].name}/"))
        self.ignored = ignored.entries
        if note := ignored.summary():
            log.info("%s", note)
        return class_names, found
