"""Classify images with a trained network.

python src/predict.py run=logs/latest input='IMG (1).jpg'
python src/predict.py run=logs/latest input=~/photos                       # a folder and its subfolders
python src/predict.py run=logs/latest/export/model.onnx input='photos/*.jpg' output=photos.csv
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("predict")  # the text "@hydra.main" in this file enables Hydra's bash completion
