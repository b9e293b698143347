"""The built-in data set as everybody else's: drawn into a normal image folder on first use, then read back from it."""

from pathlib import Path
from typing import Any

from imago.data import shapes
from imago.data.datamodule import Found, ImageDataModule
from imago.data.dataset import LabeledArray
from imago.data.folder_listing import Ignored, list_classes, list_images, read_listing
from imago.errors import DataError
from imago.images import Preprocess


class ShapesDataModule(ImageDataModule):
    """Ten shapes at 32 px; needs no data and no network.

    Args:
        root: the folder, drawn on first use.
        loading: the arguments of `ImageDataModule`.
    """

    def __init__(self, root: str, **loading: Any) -> None:
        super().__init__(**loading)
        self.root = Path(root)

    def prepare_data(self) -> None:
        """Draw the images if they are not there."""
        if not self.root.exists():
            try:
                shapes.write_shapes(self.root)
            except OSError as error:
                raise DataError(
                    f"{self.root} cannot be drawn: {error.strerror}; paths.data_dir=DIR names another folder."
                ) from error

    def find_images(self) -> Found:
        """Read the folder back; files that somebody took out or put in are an error, not another data set."""
        return shapes.CLASS_NAMES, {split: self._read(split) for split in ("train", "val", "test")}

    def default_preprocess(self) -> Preprocess:
        """No resizing; mean and std of the training images."""
        return Preprocess(size=32, resize=32, crop="center", mean=shapes.MEAN, std=shapes.STD)

    def _read(self, split: str) -> LabeledArray:
        folder = self.root / split
        listing = list_images(self.root, folder, list_classes(folder), Ignored())
        expected = shapes.SPLIT_SIZES[split]
        if list_classes(folder) != shapes.CLASS_NAMES or len(listing.paths) != expected:
            raise DataError(
                f"{folder} holds {len(listing.paths):,} images of {list_classes(folder)}, not the {expected:,} that "
                f"were drawn; delete {self.root} and run again, or use data=image_folder for images of your own."
            )
        return read_listing(listing, split)
