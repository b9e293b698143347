"""Fine-tune SqueezeNet 1.0 on a folder of photographs with fastai, with the calls of its own tutorial.

    python benchmarks/fastai_finetune.py --root hymenoptera_data --weights squeezenet.pth --epochs 4 --json OUT

`finetune.py` runs it in an environment that has fastai. The folder's val/ is the test split: fastai's schedule has no
decision on it. `Resize(256)` and `aug_transforms(size=224)` are those of its tutorial on transfer learning.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path


def main() -> None:
    """Train, test and write the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's weights for ImageNet")
    parser.add_argument("--epochs", type=int, default=4, help="of fine_tune, after one with a frozen body (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="output file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:  # the file that torchvision would have downloaded
        os.environ["TORCH_HOME"] = directory
        checkpoints = Path(directory) / "hub" / "checkpoints"
        checkpoints.mkdir(parents=True)
        shutil.copyfile(args.weights, checkpoints / "squeezenet1_0-b66bff10.pth")
        accuracy, num_images = train(args.root, args.epochs, args.seed)
    args.json.write_text(json.dumps({"acc": accuracy, "num_images": num_images}), encoding="utf-8")


def train(root: Path, epochs: int, seed: int) -> tuple[float, int]:
    """Return the accuracy on val/ and its number of images."""
    import torch
    from fastai.vision import all as vision
    from torchvision.models import squeezenet1_0

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    vision.set_seed(seed, reproducible=True)
    loaders = vision.ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="val",
        bs=16,
        num_workers=0,
        item_tfms=vision.Resize(256),
        batch_tfms=vision.aug_transforms(size=224),
    )
    learner = vision.vision_learner(loaders, squeezenet1_0, metrics=vision.accuracy)
    learner.fine_tune(epochs)
    return float(learner.validate()[1]), len(loaders.valid_ds)


if __name__ == "__main__":
    main()
