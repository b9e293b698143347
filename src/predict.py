"""Say what is on images, with a trained network.

python src/predict.py run=logs/latest input='IMG (1).jpg'
python src/predict.py run=logs/latest input=~/photos                       # a folder, with those below it
python src/predict.py run=logs/latest/export/model.onnx input='photos/*.jpg' output=photos.csv
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    # Wraps the command in @hydra.main: bash completion looks for that word in this file.
    run_command("predict")
