"""Write docs/results.md from the headers of configs/experiment, and print the rows for the README.

python docs/results.py            # or: make results
python docs/results.py --check    # write nothing; exit code 1 if docs/results.md is not up to date

A header is the comment at the top of an experiment: its title, then one line for each field.

    # source:        where the recipe comes from
    # command:       the command line, seeds included
    # hardware:      what it ran on
    # core-minutes:  CPU time of one run, start-up and test included
    # accuracy:      on the test split: mean, lowest and highest over n seeds
    # commit:        the commit that was measured, and the date

An experiment that was not run has `accuracy: not run` and no hardware, core-minutes and commit.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS_DIRECTORY = PROJECT_ROOT / "configs" / "experiment"
PAGE = PROJECT_ROOT / "docs" / "results.md"
REQUIRED_FIELDS = ("source", "command", "accuracy")
MEASURED_FIELDS = ("hardware", "core-minutes", "commit")
NOT_RUN = "not run"
SPREAD_PATTERN = re.compile(r"mean [\d.]+ %, [\d.]+ to [\d.]+ %, over n = \d+ seeds")
ACCURACY_FORMAT = "`accuracy:` reads `mean M %, LOWEST to HIGHEST %, over n = N seeds ...`, or `not run`"
NUM_README_ROWS = 4


@dataclass(frozen=True)
class Experiment:
    """The header of an experiment."""

    name: str
    title: str
    fields: dict[str, str]

    @property
    def is_measured(self) -> bool:
        """Whether the experiment was run."""
        return self.fields.get("accuracy") != NOT_RUN

    def problems(self) -> list[str]:
        """Return a line for each field that is missing or must not be set."""
        wanted = {*REQUIRED_FIELDS, *(MEASURED_FIELDS if self.is_measured else ())}
        missing = sorted(wanted - {field for field, text in self.fields.items() if text})
        accuracy = self.fields.get("accuracy")
        surplus = sorted(self.fields.keys() - wanted)
        return [
            *(f"{self.name}: the header has no `{field}:`" for field in missing),
            *(f"{self.name}: `{field}:` of a run that was {NOT_RUN}" for field in surplus),
            *(
                [f"{self.name}: {ACCURACY_FORMAT}"]
                if accuracy and self.is_measured and not SPREAD_PATTERN.match(accuracy)
                else []
            ),
        ]


def read_experiment(file: Path) -> Experiment:
    """Read the comment at the top of a YAML; a line that is indented further continues the field above it."""
    text = file.read_text(encoding="utf-8")
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    lines = [line.removeprefix("#") for line in comment if not line.startswith("# @package")]
    fields: dict[str, str] = {}
    title: list[str] = []
    name = ""
    for line in lines:
        if field := re.match(rf" ({'|'.join((*REQUIRED_FIELDS, *MEASURED_FIELDS))}):\s+(.*)", line):
            name = field[1]
            fields[name] = field[2].strip()
        elif name and line.startswith("   "):
            fields[name] += f" {line.strip()}"
        elif line.strip() and not fields:
            title.append(line.strip())
    return Experiment(file.stem, " ".join(title), fields)


def read_all(directory: Path = EXPERIMENTS_DIRECTORY) -> list[Experiment]:
    """Read all experiments; the measured ones first, by name."""
    experiments = [read_experiment(file) for file in directory.glob("*.yaml")]
    return sorted(experiments, key=lambda experiment: (not experiment.is_measured, experiment.name))


def measured_rows(experiments: list[Experiment]) -> list[str]:
    """Return the lines of the table of measured experiments."""
    rows = ["| experiment | test accuracy | core-minutes | hardware | commit |", "|---|---|---|---|---|"]
    for experiment in filter(lambda experiment: experiment.is_measured, experiments):
        cells = (experiment.fields.get(field, "") for field in ("accuracy", "core-minutes", "hardware", "commit"))
        rows.append(f"| `{experiment.name}` | {' | '.join(cells)} |")
    return rows


def readme_rows(experiments: list[Experiment]) -> list[str]:
    """Return the lines of the README's table, which leaves out hardware, commit and what is in parentheses."""
    rows = [row.rsplit("|", 3)[0] + "|" for row in measured_rows(experiments)[: 2 + NUM_README_ROWS]]
    return [re.sub(r" \(.*\)", "", row).replace("over n", "n") for row in rows]


def render(experiments: list[Experiment]) -> str:
    """Return the whole page."""
    lines = [
        "# Results",
        "",
        "Written by `python docs/results.py` from the headers of `configs/experiment`; do not edit.",
        "Accuracy is measured on the test split after training; core-minutes are the CPU time of one run, start-up and",
        "test included. An experiment from somebody else is code, as a `_target_` may name anything: read it first.",
        "",
        "## Measured",
        "",
        *measured_rows(experiments),
        "",
        "## Not run",
        "",
        "| experiment | title | source |",
        "|---|---|---|",
        *(f"| `{e.name}` | {e.title} | {e.fields.get('source', '')} |" for e in experiments if not e.is_measured),
        "",
        "## Commands",
        "",
    ]
    for experiment in experiments:
        lines += [f"- `{experiment.name}`: {experiment.title}", f"  `{experiment.fields.get('command', '')}`"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    arguments = parser.parse_args()
    experiments = read_all()
    problems = [problem for experiment in experiments for problem in experiment.problems()]
    if problems:
        sys.exit("\n".join(problems))
    page = render(experiments)
    if arguments.check:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page else f"{PAGE} is not up to date")
    PAGE.write_text(page, encoding="utf-8")
    print("\n".join(readme_rows(experiments)))


if __name__ == "__main__":
    main()
