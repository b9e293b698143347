"""Report on runs: a table of all of them, an HTML page of one, or a comparison of two.

python src/report.py                                      # all runs in logs/: mean ± std over seeds
python src/report.py runs=logs/sweeps/lr sort=val.acc csv=runs.csv
python src/report.py run=logs/latest                      # -> logs/latest/report.html
python src/report.py a=logs/train/first b=logs/train/second
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    run_command("report")  # Hydra's bash completion searches for @hydra.main
