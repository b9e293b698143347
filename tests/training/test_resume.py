"""Resuming a run with other settings: those that would change its result are refused."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imago.errors import ConfigError, NothingToDo
from imago.training.resume import check_run_directory, check_unchanged_settings, store_absolute_paths


def settings(**trainer) -> dict:
    return {
        "seed": 0,
        "resume": "x",
        "data": {"batch_size": 8, "num_workers": 0},
        "trainer": {"max_epochs": 5} | trainer,
    }


def test_settings_that_do_not_change_the_result_may_differ():
    now = settings(max_epochs=9, devices=2)
    now["data"] |= {"num_workers": 4, "loader": {"prefetch_factor": 4}}
    check_unchanged_settings(settings(), now, num_epochs_done=5, is_finished=True)


def test_settings_that_change_the_result_are_all_reported_by_name():
    now = settings(max_epochs=9) | {"seed": 1, "data": {"batch_size": 16, "num_workers": 0}}
    with pytest.raises(ConfigError) as refusal:
        check_unchanged_settings(settings(), now, num_epochs_done=1, is_finished=False)
    assert [line.split(" ")[0] for line in str(refusal.value).splitlines()] == ["seed=1", "data.batch_size=16"]


def test_an_augmentation_that_did_not_exist_yet_may_be_off_and_not_on():
    off = settings() | {"augment": {"crop_padding_px": 4, "crop_padding_mode": "zeros", "alternate_flip": False}}
    old = settings() | {"augment": {"crop_padding_px": 4}}
    check_unchanged_settings(old, off, num_epochs_done=1, is_finished=False)
    on = settings() | {"augment": off["augment"] | {"crop_padding_mode": "reflect"}}
    with pytest.raises(
        ConfigError, match=r"^augment\.crop_padding_mode=reflect cannot .* has augment\.crop_padding_mode=zeros"
    ):
        check_unchanged_settings(old, on, num_epochs_done=1, is_finished=False)


@pytest.mark.parametrize(
    ("setting", "may_change"),
    [
        *((name, True) for name in ("devices", "strategy", "max_time", "log_every_n_steps", "num_nodes", "profiler")),
        *((name, False) for name in ("precision", "gradient_clip_val", "accumulate_grad_batches", "overfit_batches")),
        *((name, False) for name in ("limit_train_batches", "limit_val_batches", "check_val_every_n_epoch")),
    ],
)
def test_trainer_settings_that_change_the_result_are_refused(setting: str, may_change: bool):
    def resume():
        check_unchanged_settings(settings(), settings(**{setting: 7}), num_epochs_done=1, is_finished=False)

    if may_change:
        resume()
    else:
        with pytest.raises(ConfigError, match=f"^trainer.{setting}=7 cannot change on resume"):
            resume()


@pytest.mark.parametrize("name", ["limit_train_batches", "limit_val_batches", "val_check_interval"])
def test_one_batch_is_not_the_share_of_all(name: str):
    one, whole = settings(**{name: 1}), settings(**{name: 1.0})
    with pytest.raises(ConfigError, match=f"^trainer.{name}=1.0 cannot change .*: the run has trainer.{name}=1;"):
        check_unchanged_settings(one, whole, num_epochs_done=1, is_finished=False)
    null = settings(**{name: None}) if "limit" in name else whole
    check_unchanged_settings(null, whole, num_epochs_done=1, is_finished=False)
    check_unchanged_settings(
        settings(gradient_clip_val=1), settings(gradient_clip_val=1.0), num_epochs_done=1, is_finished=False
    )


def test_a_finished_run_reports_how_to_extend_it():
    with pytest.raises(NothingToDo, match="has finished with trainer.max_epochs=5; trainer.max_epochs=10 extends it"):
        check_unchanged_settings(settings(), settings(), num_epochs_done=5, is_finished=True)
    check_unchanged_settings(settings(), settings(), num_epochs_done=5, is_finished=False)  # its test may be missing
    now = settings(max_steps=7)
    with pytest.raises(NothingToDo, match="has finished with trainer.max_steps=7; trainer.max_steps=14 extends it"):
        check_unchanged_settings(settings(), now, num_epochs_done=1, num_steps_done=7, is_finished=True)
    check_unchanged_settings(now, settings(max_steps=8), num_epochs_done=1, num_steps_done=7, is_finished=True)
    with pytest.raises(ConfigError, match="trainer.max_epochs=5 is less than the 6 that this run has done; type more"):
        check_unchanged_settings(settings(), settings(), num_epochs_done=6, is_finished=True)
    with pytest.raises(ConfigError, match=r"^seed=1 cannot change .*\ntrainer.max_epochs=5 is less than the 6 that"):
        check_unchanged_settings(settings(), settings() | {"seed": 1}, num_epochs_done=6, is_finished=True)


def test_a_run_that_was_stopped_early_is_not_continued_by_chance():
    with pytest.raises(NothingToDo, match="has finished with trainer.max_epochs=3; trainer.max_epochs=6 extends it"):
        check_unchanged_settings(settings(), settings(devices=2), num_epochs_done=3, is_finished=True)
    before = settings() | {"callbacks": {"early_stopping": {"patience": 1}}}
    after = settings() | {"callbacks": {"early_stopping": {"patience": 2}}}
    for now in (after, before | settings(max_epochs=9), before | settings(max_time="00:01:00:00")):
        check_unchanged_settings(before, now, num_epochs_done=3, is_finished=True)


def test_a_resumed_run_stays_with_the_directories_that_it_was_started_with(compose, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose("paths.log_dir=first")
    saved = store_absolute_paths(cfg, ["seed=1", "paths.log_dir=first"])
    assert saved == ["seed=1", f'paths.log_dir="{tmp_path / "first"}"']
    (tmp_path / "provenance.json").write_text(json.dumps({"overrides": saved}))
    again = store_absolute_paths(compose(f"resume={tmp_path}"), ["seed=1", "paths.log_dir=other"])
    assert again == saved
    typed = ["data=torchvision", "data.name=MNIST", "data.data_dir=own"]
    assert store_absolute_paths(compose(*typed), typed)[2] == f'data.data_dir="{tmp_path / "own"}"'
    data = store_absolute_paths(cfg := compose("paths.data_dir=mine"), ["paths.data_dir=mine"])
    assert data == [f'paths.data_dir="{tmp_path / "mine"}"']
    assert cfg.data.data_dir == str(tmp_path / "mine")
    starts_over = store_absolute_paths(compose("resume=auto", "paths.log_dir=other"), ["paths.log_dir=other"])
    assert starts_over == [f'paths.log_dir="{tmp_path / "other"}"']


EMA = {"_target_": "imago.callbacks.ema.Ema", "decay": 0.99}


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"callbacks": {"ema": EMA}}, {"callbacks": {}}, "callbacks.ema._target_=None cannot change on resume"),
        ({"callbacks": {}}, {"callbacks": {"ema": EMA}}, "the run has callbacks.ema._target_=None"),
        *(
            ({"callbacks": {"best_checkpoint": {name: 1}}}, {"callbacks": {"best_checkpoint": {name: 2}}}, text)
            for name in ("monitor", "mode", "save_top_k")
            for text in [f"callbacks.best_checkpoint.{name}=2 cannot change on resume"]
        ),
        ({"task": {"alpha": 0.7}}, {"task": {"alpha": 0.5}}, "task.alpha=0.5 cannot change on resume"),
        ({"task": {"teacher": "/a"}}, {"task": {"teacher": "/b"}}, "task.teacher=/b cannot change on resume"),
    ],
)
def test_callbacks_and_task_settings_that_change_the_result_are_refused(before: dict, after: dict, text: str):
    with pytest.raises(ConfigError, match=re.escape(text)):
        check_unchanged_settings(settings() | before, settings() | after, num_epochs_done=1, is_finished=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"compile": True, "tta": "flip", "tune": None}),  # keys that are absent from an older run
        ({"task": {"net": {"name": "a"}}}, {"task": {"net": {"name": "b"}}}),  # reported by the model group itself
        ({"callbacks": {"speed": {"a": 1}}}, {"callbacks": {}}),
        ({"data": {"on_device": "auto"}}, {"data": {"on_device": False}}),
    ],
)
def test_absent_keys_and_observing_callbacks_may_differ(before: dict, after: dict):
    check_unchanged_settings(settings() | before, settings() | after, num_epochs_done=1, is_finished=False)


@pytest.fixture
def stopped(compose, tmp_path: Path) -> Path:
    """Return a run directory with the files that are checked on resume."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "summary.json").write_text(json.dumps({"status": "stopped"}))
    OmegaConf.save(compose(f"resume={tmp_path}"), tmp_path / "config.yaml", resolve=True)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["data.batch_size=16"], "data.batch_size=16 cannot change on resume: the run has data.batch_size=128"),
        (["data=shapes"], "data._target_=imago.data.shapes.ShapesDataModule cannot change on resume"),
    ],
)
def test_a_setting_that_changes_the_run_is_one_line(compose, stopped: Path, settings: list[str], text: str):
    check_run_directory(compose(f"resume={stopped}", "data.num_workers=2"), stopped)
    with pytest.raises(ConfigError) as caught:
        check_run_directory(compose(f"resume={stopped}", *settings), stopped)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_directory_that_holds_another_run_or_no_checkpoint_is_refused(compose, stopped: Path):
    with pytest.raises(ConfigError, match="run_name=taken: .* already holds a run; choose another name, or resume="):
        check_run_directory(compose("run_name=taken"), stopped)
    (stopped / "config.yaml").write_text("data: [")
    with pytest.raises(ConfigError, match=r"its config\.yaml cannot be read"):
        check_run_directory(compose(f"resume={stopped}"), stopped)
    (stopped / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match="ended before its first checkpoint; type run_name=.* without resume="):
        check_run_directory(compose(f"resume={stopped}"), stopped)
    check_run_directory(compose("run_name=taken"), stopped)
    (stopped / "summary.json").write_text(json.dumps({"status": "finished"}))  # callbacks.last_checkpoint=null
    with pytest.raises(ConfigError, match="already holds a run"):
        check_run_directory(compose("run_name=taken"), stopped)


@pytest.mark.parametrize("key", ["list_file", "split_file", "root"])
def test_paths_of_the_data_are_stored_so_that_they_are_found_from_any_directory(
    compose, tmp_path: Path, monkeypatch, key: str
):
    monkeypatch.chdir(tmp_path)
    cfg = compose("data=image_list", "data.list_file=/lists/a.csv", f"data.{key}=my/file")
    overrides = store_absolute_paths(cfg, ["data=image_list", f"data.{key}=my/file"])
    assert cfg.data[key] == f"{tmp_path}/my/file"
    assert overrides == ["data=image_list", f'data.{key}="{tmp_path}/my/file"']
