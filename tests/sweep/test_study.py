"""The study of a sweep: what it refuses."""

from pathlib import Path

import pytest

from imago.errors import ConfigError, DataError
from imago.sweep.study import check_names


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sampler": "foo"}, "sweep.sampler=foo is not one of grid, random, tpe"),
        ({"pruner": "medain"}, "sweep.pruner=medain is not one of none, median"),
        ({"pruner": {"_target_": "optuna.pruners.PercentilePruner", "percentile": 500}}, "sweep.pruner=optuna.pruners"),
        ({"sampler": {"_target_": "optuna.samplers.NoSampler"}}, "NoSampler"),
        ({"sampler": {"_target_": "optuna.samplers.BruteForceSampler"}}, "BruteForceSampler: type sweep=grid"),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "n_startup_trial": 3}}, "n_startup_trial"),
    ],
)
def test_an_unknown_sampler_or_pruner_is_one_line(changes: dict, line: str):
    with pytest.raises(ConfigError, match=line) as error:
        check_names({"sampler": "grid", "pruner": "none"} | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (["lr=0.1,0.3"], {}, "with other values"),
        (["lr=0.1,0.2", "epochs=2"], {}, "with other settings"),
        (["lr=0.1,0.2", "seed=1,2"], {}, "with other repetitions"),
        (["lr=0.1,0.2"], {"direction": "minimize"}, r"with other objective \(maximize; now minimize\)"),
        (["lr=0.1,0.2"], {"objective": "val/f1"}, r"with other objective \(val/acc; now val/f1\)"),
        (["lr=0.1,0.2"], {"sampler": "random", "n_trials": 3}, "with other kind of search"),
    ],
)
def test_another_search_in_the_same_directory_is_refused(new_driver, arguments: list[str], changes: dict, words: str):
    new_driver("lr=0.1,0.2")
    new_driver("lr=0.1,0.2", parallel=3, pruner="median", n_trials=1)  # these may change
    with pytest.raises(ConfigError, match=words):
        new_driver(*arguments, **changes)


def test_machines_may_have_directories_of_their_own(new_driver):
    new_driver("lr=0.1,0.2", "paths.log_dir=a")
    new_driver("lr=0.1,0.2", "paths.log_dir=b")


def test_a_damaged_journal_and_an_unknown_database_are_one_line(new_driver, fake_project: Path):
    new_driver("lr=0.1,0.2")
    with (fake_project / "x/study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "wor\n')
    with pytest.raises(DataError, match=r"study.journal, line \d+ is damaged, as by a full disk"):
        new_driver("lr=0.1,0.2")
    with pytest.raises(DataError, match="sweep.storage=nope://x cannot be opened"):
        new_driver("lr=0.1,0.2", name="y", storage="nope://x")
