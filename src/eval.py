"""Evaluate a trained network: accuracy with its interval, every class, and what is taken for what.

python src/eval.py run=logs/latest                                         # the test images of its own data
python src/eval.py run=logs/latest split=val ckpt=last
python src/eval.py run=logs/latest data=image_folder data.root=~/flowers   # other images, classes matched by name
python src/eval.py run=logs/latest/export/model.onnx                       # what was exported
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    # Wraps the command in @hydra.main: bash completion looks for that word in this file.
    run_command("eval")
