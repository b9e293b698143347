"""What `resume=` makes of a command line, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from imago.cli.resume import resume_arguments
from imago.errors import ConfigError
from imago.paths import quote_for_hydra
from imago.training.resume import refuse_other_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that was started with three settings."""
    folder = tmp_path / "train" / "größe, run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    overrides = ["model=simple_cnn", "optimizer.lr=0.1", "+callbacks.mine={a: 1}", 'resume="elsewhere"']
    (folder / "provenance.json").write_text(json.dumps({"overrides": overrides}))
    return folder


def settings(**trainer) -> dict:
    return {
        "seed": 0,
        "resume": "x",
        "data": {"batch_size": 8, "num_workers": 0},
        "trainer": {"max_epochs": 5} | trainer,
    }


def test_a_command_line_without_resume_is_left_alone(tmp_path: Path):
    assert resume_arguments(["-m", "seed=1", "resume=null"], tmp_path) == ["-m", "seed=1", "resume=null"]


def test_saved_settings_come_first_and_typed_ones_win(run: Path, tmp_path: Path):
    folder = quote_for_hydra(str(run))
    assert resume_arguments([f"resume={folder}", "optimizer.lr=0.5", "seed=3"], tmp_path) == [
        *("model=simple_cnn", "optimizer.lr=0.5", "+callbacks.mine={a: 1}"),
        *(f"resume={folder}", "seed=3", f"hydra.run.dir={folder}"),
    ]


def test_a_setting_that_the_run_added_can_be_changed_without_adding_it_again(run: Path, tmp_path: Path):
    assert "+callbacks.mine=null" in resume_arguments(
        [f"resume={quote_for_hydra(str(run))}", "callbacks.mine=null"], tmp_path
    )


def test_auto_continues_what_has_a_checkpoint_and_starts_what_has_none(run: Path, tmp_path: Path):
    name = quote_for_hydra(run.name)
    assert f"hydra.run.dir={quote_for_hydra(str(run))}" in resume_arguments(
        [f"run_name={name}", "resume=auto"], tmp_path
    )
    assert resume_arguments(["run_name=new", "resume=auto"], tmp_path) == ["run_name=new"]


def test_auto_without_a_name_and_a_folder_that_is_no_run_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="resume=auto needs run_name=NAME"):
        resume_arguments(["resume=auto"], tmp_path)
    with pytest.raises(ConfigError, match="is not a run directory"):
        resume_arguments([f"resume={tmp_path}"], tmp_path)


def test_settings_that_only_change_how_it_runs_may_differ():
    now = settings(max_epochs=9, devices=2)
    now["data"]["num_workers"] = 4
    refuse_other_run(settings(), now, num_epochs_done=5, is_tested=True)


def test_settings_that_make_it_another_run_are_all_refused_by_name():
    now = settings(max_epochs=9) | {"seed": 1, "data": {"batch_size": 16, "num_workers": 0}}
    with pytest.raises(ConfigError) as refusal:
        refuse_other_run(settings(), now, num_epochs_done=1, is_tested=False)
    assert [line.split(" ")[0] for line in str(refusal.value).splitlines()] == ["seed=1", "data.batch_size=16"]


@pytest.mark.parametrize(
    ("setting", "is_free"),
    [
        *((name, True) for name in ("devices", "strategy", "max_time", "log_every_n_steps", "num_nodes", "profiler")),
        *((name, False) for name in ("precision", "gradient_clip_val", "accumulate_grad_batches", "overfit_batches")),
        *((name, False) for name in ("limit_train_batches", "limit_val_batches", "check_val_every_n_epoch")),
    ],
)
def test_settings_of_the_trainer_that_change_the_result_are_refused(setting: str, is_free: bool):
    def resume():
        refuse_other_run(settings(), settings(**{setting: 7}), num_epochs_done=1, is_tested=False)

    if is_free:
        resume()
    else:
        with pytest.raises(ConfigError, match=f"^trainer.{setting}=7 would make it another run"):
            resume()


def test_auto_starts_over_what_ended_before_its_first_checkpoint(run: Path, tmp_path: Path):
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "summary.json").write_text("{}")
    typed = [f"run_name={quote_for_hydra(run.name)}", "resume=auto", "seed=3"]
    assert resume_arguments(typed, tmp_path) == typed


def test_a_run_that_is_done_says_how_to_extend_it():
    with pytest.raises(ConfigError, match="has done its trainer.max_epochs=5; trainer.max_epochs=10 extends it"):
        refuse_other_run(settings(), settings(), num_epochs_done=5, is_tested=True)
    refuse_other_run(settings(), settings(), num_epochs_done=5, is_tested=False)  # its test is still to be done


EMA = {"_target_": "imago.callbacks.ema.Ema", "decay": 0.99}


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"callbacks": {"ema": EMA}}, {"callbacks": {}}, "callbacks.ema._target_=None would make it another run"),
        ({"callbacks": {}}, {"callbacks": {"ema": EMA}}, "it has callbacks.ema._target_=None"),
        ({"task": {"alpha": 0.7}}, {"task": {"alpha": 0.5}}, "task.alpha=0.5 would make it another run"),
        ({"task": {"teacher": "/a"}}, {"task": {"teacher": "/b"}}, "task.teacher=/b would make it another run"),
    ],
)
def test_what_training_rests_on_cannot_change_midway(before: dict, after: dict, text: str):
    with pytest.raises(ConfigError, match=re.escape(text)):
        refuse_other_run(settings() | before, settings() | after, num_epochs_done=1, is_tested=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"compile": True, "tta": "flip", "tune": None}),  # keys that an older run does not have
        ({"task": {"net": {"name": "a"}}}, {"task": {"net": {"name": "b"}}}),  # told once, by the group itself
        ({"callbacks": {"speed": {"a": 1}}}, {"callbacks": {}}),
    ],
)
def test_how_it_is_carried_out_may_change(before: dict, after: dict):
    refuse_other_run(settings() | before, settings() | after, num_epochs_done=1, is_tested=False)
