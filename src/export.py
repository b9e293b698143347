"""Write a trained network in another format, and compare its outputs with those of the checkpoint.

python src/export.py run=logs/latest                      # -> logs/latest/export/model.onnx and export_report.json
python src/export.py run=logs/latest opset=18
python src/export.py run=logs/latest format=openvino
python src/export.py run=logs/latest parity_samples=500   # compare on 500 validation images
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("export")  # the text "@hydra.main" in this file enables Hydra's bash completion
