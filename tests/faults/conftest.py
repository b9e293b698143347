"""What the tests of bad input need: a small sound dataset to spoil, and the data module that meets it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imago.data.file_datamodule import ImageFolderDataModule

SOUND = {"train/ant": 6, "train/bee": 6, "val/ant": 2, "val/bee": 2, "test/ant": 2, "test/bee": 2}


@pytest.fixture
def fill() -> Callable[..., Path]:
    """Give a function that fills folders with that many 12 x 12 images, no two alike."""

    def run(root: Path, counts: dict[str, int] = SOUND) -> Path:
        noise = np.random.default_rng(len(list(root.rglob("*"))))
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
        return root

    return run


@pytest.fixture
def set_up(tmp_path: Path) -> Callable[..., ImageFolderDataModule]:
    """Give a function that sets a folder up as a dataset, as every run does."""

    def run(root: Path, num_workers: int = 0, **settings) -> ImageFolderDataModule:
        given = {"val_fraction": 0.2, "test_fraction": 0.1, "cache": "none", "cache_dir": str(tmp_path / "cache")}
        loading = {"batch_size": 4, "num_workers": num_workers, "augment": {}, "seed": 0}
        data = ImageFolderDataModule(root=str(root), **(given | loading | settings))
        data.set_up_data()
        return data

    return run
