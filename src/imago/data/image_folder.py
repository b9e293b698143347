"""Pictures in folders named after their classes, as a data set."""

import logging
from typing import Any

from imago.data.dataset import LabelledFiles
from imago.data.file_datamodule import FileDataModule
from imago.data.listing.folder import Ignored, find_splits, list_pictures, list_training_classes

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
        found: dict[str, LabelledFiles] = {}
        # Test first: a file that has a second name among the training pictures stays where it is tested.
        for split in ("test", "val", "train"):
            if split in folders:
                found[split] = list_pictures(self.root, folders[split], class_names, ignored)
        ignored.entries.sort(key=lambda entry: not entry[0].startswith(f"{folders['train'].name}/"))
        self.ignored = ignored.entries
        if note := ignored.summary():
            log.info("%s", note)
        return class_names, found
