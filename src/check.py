"""Check a data set before training on it: damaged images, duplicates across splits, sizes, and a look at each class.

python src/check.py data=image_folder data.root=~/flowers
python src/check.py data=image_folder data.root=~/flowers augment=standard show=augment   # what augmentation does
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    # Wraps the command in @hydra.main: bash completion looks for that word in this file.
    run_command("check")
