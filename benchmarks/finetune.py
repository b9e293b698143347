"""Compare ways to fine-tune a network on a small folder of photographs: SqueezeNet 1.0 on ants and bees.

    python benchmarks/finetune.py --root hymenoptera_data --weights squeezenet1_0-imagenet.pth
    OMP_NUM_THREADS=1 python benchmarks/finetune.py ... --fastai-python ~/fastai/bin/python    # at two costs

The folder's val/ is the test split of all sides, and none of them uses it for a choice. Without --fastai-python, the
other side is the same network from scratch; it uses AdamW and --scratch-lr: with SGD its accuracy stayed at chance for
1e-2 and 3e-3. fastai runs in an environment of its own, whose Python has fastai 2.8 (`fastai_finetune.py`): for 4 and
for 8 epochs, against experiment=finetune_folder with the numbers of epochs of --epochs. fastai trains on all images of
train/, so ours does, too, but for one in fifty, and takes the last weights; the settings were chosen before, by
cross-validation over train/.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from paired import Side, add_arguments, describe_difference, difference, run_sides, store, summarize
from train_speed import PROJECT_ROOT, measure

PRETRAINED, SCRATCH = "pretrained", "from scratch"
FASTAI_EPOCHS = (4, 8)


def run_fastai(python: Path, root: Path, weights: Path, epochs: int, seed: int) -> tuple[float, int, float, float]:
    """Run `fastai_finetune.py`; return accuracy, number of images, CPU seconds and wall seconds."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "fastai.json"
        command = [str(python), str(PROJECT_ROOT / "benchmarks" / "fastai_finetune.py"), f"--root={root}"]
        cpu_s, wall_s = measure(
            [*command, f"--weights={weights}", f"--epochs={epochs}", f"--seed={seed}", f"--json={result}"]
        )
        content = json.loads(result.read_text(encoding="utf-8"))
        return content["acc"], content["num_images"], cpu_s, wall_s


def main() -> None:
    """Run the sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's weights for ImageNet")
    parser.add_argument("--scratch-lr", type=float, default=5e-4, help="learning rate from scratch (default: 5e-4)")
    parser.add_argument("--fastai-python", type=Path, metavar="FILE", help="the Python of an environment with fastai")
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=(15, 28), help="ours beside fastai's 4 and 8 (default: 15 28)"
    )
    add_arguments(parser, "finetune")
    args = parser.parse_args()
    root, weights = args.root.absolute(), args.weights.absolute()
    # The same preprocessing for all: without weights, that of the dataset would be used.
    shape = ["preprocess.size=224", "preprocess.resize=256"]
    both = ["experiment=finetune_folder", f"data.root={root}", "data.val_as_test=true", *shape]
    pretrained = [*both, f"model.weights={weights}"]
    sides: dict[str, Side] = {
        PRETRAINED: pretrained,
        SCRATCH: [*both, "model.weights=null", "optimizer=adamw", f"optimizer.lr={args.scratch_lr}"],
    }
    pairs = [(PRETRAINED, SCRATCH)]
    if args.fastai_python:
        sides, pairs = {}, []
        for ours, theirs in zip(args.epochs, FASTAI_EPOCHS, strict=True):
            pairs.append((f"ours, {ours} epochs", f"fastai, {theirs} epochs"))
            validated_once = [f"trainer.max_epochs={ours}", f"trainer.check_val_every_n_epoch={ours}"]
            sides[pairs[-1][0]] = [*pretrained, "data.val_fraction=0.02", *validated_once]
            sides[pairs[-1][1]] = partial(run_fastai, args.fastai_python.absolute(), root, weights, theirs)
        if args.json == parser.get_default("json"):
            args.json = args.json.with_name("finetune_fastai.json")
    runs = run_sides(sides, args, "finetune")
    results = [difference(runs, *pair) for pair in pairs]
    store(args.json, args, runs, sides={side: summarize(runs, side) for side in sides}, differences=results)
    print(*map(describe_difference, results), sep="\n")


if __name__ == "__main__":
    main()
