"""Export a trained network as one ONNX file, and prove that it says what the checkpoint says.

python src/export.py run=logs/latest                # -> logs/latest/export/model.onnx and export_report.json
python src/export.py run=logs/train/first opset=18
python src/export.py run=logs/latest limit=500      # compare on 500 of the validation images
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    # Wraps the command in @hydra.main: bash completion looks for that word in this file.
    run_command("export")
