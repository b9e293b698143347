"""Train one classifier.

python src/train.py                                        # a small CNN on CIFAR-10
python src/train.py experiment=quickstart                  # needs no download
python src/train.py optimizer.lr=3e-4 trainer.max_epochs=20
python src/train.py -m optimizer.lr=1e-3,3e-3 seed=1,2,3   # a sweep
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("train")  # the text "@hydra.main" in this file enables Hydra's bash completion
