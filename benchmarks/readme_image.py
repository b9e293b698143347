"""Draw the image of the README from a run: loss and accuracy over the epochs, and the test accuracy.

python src/train.py trainer.max_epochs=20 run_name=cifar10_simple_cnn
python benchmarks/readme_image.py logs/train/cifar10_simple_cnn docs/images/cifar10_simple_cnn.png
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


def draw(run: Path, image: Path) -> None:
    """Read `metrics.csv` and `summary.json` of a run and write a PNG, 1000 x 360 pixels."""
    rows = pd.read_csv(run / "metrics.csv")
    test = json.loads((run / "summary.json").read_text())["test"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), dpi=100, layout="constrained")
    for panel, name in zip(panels, ("loss", "acc"), strict=True):
        draw_panel(panel, rows, name)
    low, high = test["interval_95"]
    panels[1].axhspan(low, high, color="tab:green", alpha=0.25, label=f"test/acc {test['acc']:.1%}, 95 % interval")
    panels[1].legend(loc="lower right")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image)


def draw_panel(panel: Axes, rows: pd.DataFrame, name: str) -> None:
    """Draw train and val curves of one quantity over the epochs, counted from 1."""
    for split in ("train", "val"):
        column = f"{split}/{name}"
        points = rows.dropna(subset=[column])
        panel.plot(points["epoch"] + 1, points[column], marker="o", markersize=3, label=column)
    panel.set_xlabel("epoch")
    panel.set_ylabel(name)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.legend()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("image", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    draw(arguments.run, arguments.image)
