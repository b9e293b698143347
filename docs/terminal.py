"""Draw docs/images/terminal.svg: a terminal session, from what the commands print here and now.

python docs/terminal.py     # about five minutes of one core; keeps its runs in a temporary directory
"""

import html
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
IMAGE = PROJECT_ROOT / "docs" / "images" / "terminal.svg"
NUM_COLUMNS = 108  # of the terminal; longer lines are cut
FONT_PX, LINE_PX, MARGIN_PX = 13, 19, 16
CHARACTER_PX = 7.8  # width of a monospace character of 13 px
STYLE = """
rect { fill: #ffffff; stroke: #d0d7de }
text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #1f2328 }
.command { fill: #0550ae; font-weight: bold }
.error { fill: #b3261e }
.note { fill: #57606a; font-style: italic }
@media (prefers-color-scheme: dark) {
  rect { fill: #0d1117; stroke: #30363d }
  text { fill: #e6edf3 }
  .command { fill: #79c0ff }
  .error { fill: #ff8b82 }
  .note { fill: #8d96a0 }
}
"""


def session(logs: Path) -> list[tuple[str, str]]:
    """Run the commands of the session and return its lines, each with its class."""
    own = [f"paths.log_dir={logs}", "run_name=shapes"]
    lines = [("note", "# A typing error is answered before anything is loaded.")]
    lines += run("python src/train.py experiment=quickstart optimizer.lrr=1e-3", [], {"error"})
    lines += [("note", "# A run is killed, continued, and reaches the weights of an undisturbed run.")]
    command = "python src/train.py experiment=quickstart run_name=shapes"
    lines += kill_after_epochs(command, own, 4)
    lines += run("python src/train.py resume=logs/train/shapes", [], {"epoch   5", "epoch  12", "test acc"}, logs)
    lines += [("note", "# Evaluate it with intervals; its probabilities are calibrated on val.")]
    lines += run("python src/eval.py run=logs/train/shapes", [], {"accuracy", "F1", "ECE"}, logs)
    return lines


def run(command: str, more: list[str], wanted: set[str], logs: Path | None = None) -> list[tuple[str, str]]:
    """Run a command and return it with the lines that start with one of the wanted words."""
    done = subprocess.run(real(command, logs) + more, cwd=PROJECT_ROOT, capture_output=True, text=True)
    output = (done.stderr + done.stdout).replace(str(logs), "logs") if logs else done.stderr + done.stdout
    kind = "error" if done.returncode else ""
    shown = [line.split(" (")[0] for line in output.splitlines() if line.strip().startswith(tuple(wanted))]
    return [("command", f"$ {command}"), *((kind, line) for line in shown)]


def kill_after_epochs(command: str, more: list[str], num_epochs: int) -> list[tuple[str, str]]:
    """Kill a training after some epochs; return the command with the lines of these epochs."""
    process = subprocess.Popen(
        real(command, None) + more, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    shown = []
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"epoch +\d+/", line):
            shown.append(("", line.rstrip()))
        if len(shown) == num_epochs:
            time.sleep(2)  # within the next epoch
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    return [("command", f"$ {command} &"), *shown, ("command", "$ kill -9 %1")]


def real(command: str, logs: Path | None) -> list[str]:
    """Return the arguments of a printed command."""
    arguments = shlex.split(command.replace("=logs/", f"={logs}/") if logs else command)
    return [sys.executable, *arguments[1:]]


def draw(lines: list[tuple[str, str]]) -> str:
    """Return the lines as SVG, light or dark as the reader's system."""
    width, height = round(NUM_COLUMNS * CHARACTER_PX) + 2 * MARGIN_PX, len(lines) * LINE_PX + 2 * MARGIN_PX
    texts = []
    for index, (kind, line) in enumerate(lines):
        content = html.escape(line if len(line) <= NUM_COLUMNS else line[: NUM_COLUMNS - 3] + "...")
        y = MARGIN_PX + index * LINE_PX + FONT_PX
        texts.append(f'<text class="{kind or "output"}" x="{MARGIN_PX}" y="{y}" xml:space="preserve">{content}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    title = "<title>A terminal session: an error, a killed and resumed training, an evaluation</title>"
    box = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", box, *texts, "</svg>\n"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        IMAGE.write_text(draw(session(Path(folder))), encoding="utf-8")
    print(f"wrote {IMAGE.relative_to(PROJECT_ROOT)}")
