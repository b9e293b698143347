"""Report on runs: a table of all, a page for one, or a comparison of two. Reads run directories, without torch."""

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig

from imago.errors import ConfigError, DataError
from imago.files import refuse_links, report_unwritable
from imago.paths import command, short_path
from imago.text import counted, join_names, printable

_DEFAULTS: dict[str, dict] = {  # of the settings of one kind of report
    "the table of runs": {"sort": "started", "tags": [], "group_seeds": True, "csv": None},
    "a page (run=RUN, or a= and b=)": {"split": "test", "output": None},
    "a model card (card=true)": {"license": None, "overwrite": False, "trust": [], "output": None},
    "an upload (push=)": {"private": True, "output": None},
}
_TABLE, _PAGE, _CARD, _UPLOAD = _DEFAULTS


def report(cfg: DictConfig) -> None:
    """Print the table of runs, or write the HTML page of a run or of a comparison, as the settings select.

    Raises:
        UserError: for settings or files that the user has to correct.
    """
    check_settings(cfg)
    if cfg.run and _is_sweep(cfg.run):
        _report_sweep(Path(cfg.run), cfg.output)
    elif cfg.run:
        _report_run(cfg)
    elif cfg.a:
        _report_comparison(cfg)
    else:
        _report_table(cfg)


def check_settings(cfg: DictConfig) -> None:
    """Raise a `ConfigError` for settings of this command that do not go together."""
    selected = [name for name in ("runs", "run", "a") if cfg[name]]
    if len(selected) > 1:
        raise ConfigError(f"{selected[0]}= and {selected[1]}= select different reports; use one of them.")
    if bool(cfg.a) != bool(cfg.b):
        raise ConfigError("a= and b= are the two runs of a comparison; use both.")
    of_model = [kind for kind, is_chosen in ((_CARD, cfg.card), (_UPLOAD, cfg.push)) if is_chosen]
    kinds = of_model or [_PAGE if cfg.run or cfg.a else _TABLE]
    used = {name for kind in kinds for name in _DEFAULTS[kind]} - ({"split"} if _is_sweep(cfg.run) else set())
    for other, defaults in _DEFAULTS.items():
        for name, default in defaults.items():
            if name not in used and cfg[name] != default:
                raise ConfigError(f"{name}={cfg[name]} is a setting of {other}; leave it out.")
    if cfg.split not in ("val", "test"):
        raise ConfigError(f"split={cfg.split} is not one of test, val.")
    for name in ("run", "a", "b"):
        is_run = (Path(cfg[name] or "") / "summary.json").is_file() or (name == "run" and _is_sweep(cfg.run))
        if cfg[name] and not is_run:
            raise ConfigError(
                f"{name}={cfg[name]} is not a run directory (no summary.json); use one, e.g. logs/latest."
            )
        if cfg[name]:
            refuse_links(Path(cfg[name]))


def _is_sweep(directory: str | None) -> bool:
    return directory is not None and (Path(directory) / "sweep.json").is_file()


def _report_sweep(directory: Path, output: str | None) -> None:
    from imago.analysis.ranking import rank_settings, ranking_text
    from imago.analysis.sweep_page import write_sweep_page

    file = Path(output) if output else directory / "report.html"
    ranking = rank_settings(directory.resolve())
    if not ranking.settings:
        raise DataError(f"{short_path(directory)} has no runs yet; a sweep numbers them 0, 1, 2 in its directory.")
    notes = write_sweep_page(ranking, file)
    print("\n".join([ranking_text(ranking), "", *notes]).rstrip())
    print(f"page written to {short_path(file)}; ranking.csv and ranking.md are in {short_path(directory)}")


def _report_table(cfg: DictConfig) -> None:
    from imago.analysis.runs import load_runs, mean_over_seeds, older_repetitions, runs_on_other_data
    from imago.analysis.table import run_notes, sort_runs, table_text, write_runs_csv

    logs = Path(cfg.runs or cfg.paths.log_dir)
    runs = load_runs(logs, tags=list(map(str, cfg.tags)))
    if runs.empty and (tags := sorted({*", ".join(load_runs(logs)["tags"]).split(", ")} - {""})):
        raise ConfigError(f"tags={cfg.tags}: no run below {logs} has all of them; the runs have {join_names(tags)}.")
    if runs.empty:
        raise DataError(f"runs={logs} contains no runs that have trained; {command('train')} creates one.")
    table = sort_runs(mean_over_seeds(runs) if cfg.group_seeds else runs, cfg.sort)
    print(table_text(table, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    print(f"\n{counted(len(runs), 'run')} below {short_path(logs)}; val and test are accuracies")
    print("test: (95 % interval), for several seeds ± standard deviation [lowest..highest]")
    for note in run_notes(runs):
        print(f"note: {note}")
    if cfg.group_seeds and (older := older_repetitions(runs)["run"].tolist()):
        print(f"note: not in the means, because a newer run has the same settings and seed: {join_names(older)}")
    if cfg.group_seeds and (others := runs_on_other_data(runs)["run"].tolist()):
        print(f"note: averaged only where the data is the same: it changed between {join_names(others)}")
    if cfg.csv:
        write_runs_csv(table, Path(cfg.csv))
        print(f"table written to {short_path(Path(cfg.csv))}")
    if _is_sweep(cfg.runs):
        print()
        _report_sweep(Path(cfg.runs), None)


def _report_run(cfg: DictConfig) -> None:
    from imago.analysis.run_page import write_run_page

    run = Path(cfg.run).resolve()
    file = Path(cfg.output) if cfg.output else run / f"report{'_val' * (cfg.split == 'val')}.html"
    notes = write_run_page(run, cfg.split, file)
    print(f"page written to {short_path(file)} ({file.stat().st_size / 1e6:.1f} MB)")
    for note in notes:
        print(f"note: {printable(note)}")


def _report_comparison(cfg: DictConfig) -> None:
    from imago.analysis.comparison import compare_runs, comparison_text, write_comparison_page

    a, b = Path(cfg.a).resolve(), Path(cfg.b).resolve()
    name = f"comparison_with_{b.parent.name}_{b.name}{'_val' * (cfg.split == 'val')}.html"
    file = Path(cfg.output) if cfg.output else a / name
    if not cfg.output:
        with report_unwritable(file, "; choose another file with output=FILE.html"):
            file.unlink(missing_ok=True)  # an older page would look like the result of a comparison that fails
    comparison = compare_runs(a, b, cfg.split)
    write_comparison_page(comparison, file)
    print(comparison_text(comparison))
    print(f"\npage written to {short_path(file)}")
