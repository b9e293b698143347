"""Look at runs: all of them in a table, one of them as a page for the browser, or two against each other.

python src/report.py                                      # all runs below logs/, seeds folded into mean and spread
python src/report.py runs=logs/sweeps/lr sort=test.acc csv=runs.csv
python src/report.py run=logs/latest                      # -> logs/latest/report.html
python src/report.py a=logs/train/first b=logs/train/second
"""

from imago.cli.entry import run_command

if __name__ == "__main__":
    # Wraps the command in @hydra.main: bash completion looks for that word in this file.
    run_command("report")
