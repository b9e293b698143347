"""Check a dataset before training: damaged images, duplicates across splits, image sizes, examples of each class.

python src/check.py data=image_folder data.root=~/flowers
python src/check.py data=image_folder data.root=~/flowers augment=standard show=augment   # augmented images
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("check")  # the text "@hydra.main" in this file enables Hydra's bash completion
