"""Measure the effect of pretrained weights on a small folder of photographs: SqueezeNet 1.0 with and without them.

    python benchmarks/finetune.py --root hymenoptera_data --weights squeezenet1_0-imagenet.pth

Both sides run experiment=finetune_folder on the same splits, with the folder's val/ as the test split. The side from
scratch uses AdamW and --scratch-lr: with SGD its accuracy stayed at chance for 1e-2 and 3e-3.
"""

import argparse
from pathlib import Path

from paired import add_arguments, describe_difference, difference, run_sides, store, summarize

PRETRAINED, SCRATCH = "pretrained", "from scratch"


def main() -> None:
    """Run both sides and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="image folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's weights for ImageNet")
    parser.add_argument("--scratch-lr", type=float, default=5e-4, help="learning rate from scratch (default: 5e-4)")
    add_arguments(parser, "finetune")
    args = parser.parse_args()
    # The same preprocessing for both: without weights, that of the dataset would be used.
    both = ["experiment=finetune_folder", f"data.root={args.root.absolute()}", "data.val_as_test=true"]
    shape = ["preprocess.size=224", "preprocess.resize=256"]
    sides = {
        PRETRAINED: [*both, *shape, f"model.weights={args.weights.absolute()}"],
        SCRATCH: [*both, *shape, "model.weights=null", "optimizer=adamw", f"optimizer.lr={args.scratch_lr}"],
    }
    runs = run_sides(sides, args, "finetune")
    result = difference(runs, PRETRAINED, SCRATCH)
    store(args.json, args, runs, sides={side: summarize(runs, side) for side in sides}, difference=result)
    print(describe_difference(result))


if __name__ == "__main__":
    main()
