"""Evaluate a trained network: accuracy with its interval, per-class scores and the confusion matrix.

python src/eval.py run=logs/latest                                         # the test split of its own data
python src/eval.py run=logs/latest split=val ckpt=last
python src/eval.py run=logs/latest data=image_folder data.root=~/flowers   # other images; classes are matched by name
python src/eval.py run=logs/latest/export/model.onnx                       # the exported file
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("eval")  # the text "@hydra.main" in this file enables Hydra's bash completion
