"""The settings, scores and figures of a run in TensorBoard."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from imago.logger.tensorboard import result_settings


def test_settings_are_numbers_and_texts_by_their_names_as_typed(compose):
    cfg = compose("model=resnet18", "optimizer.lr=0.003", "seed=7", "model.weights=null")
    found = result_settings(OmegaConf.to_container(cfg, resolve=True))
    assert found["seed"] == 7
    assert found["optimizer"] == "AdamW"
    assert found["optimizer.lr"] == 0.003
    assert found["model.weights"] == "null"
    assert found["data.batch_size"] == compose().data.batch_size
    assert {type(value) for value in found.values()} <= {bool, int, float, str}
    assert not [name for name in found if "_target_" in name or "_partial_" in name]


@pytest.mark.slow
def test_a_run_has_its_settings_with_the_scores_and_figures_of_its_best_epoch(finished_run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    summary = json.loads((finished_run / "summary.json").read_text())
    events = EventAccumulator(str(finished_run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    written = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(written).session_start_info.hparams
    assert settings["trainer.max_epochs"].number_value == 2
    assert settings["model"].string_value == "SimpleCNN"
    assert {"augment.mixup_alpha", "seed", "data.batch_size"} <= settings.keys()
    assert not [name for name in settings if name.startswith(("data.augment", "data.seed"))]
    assert [point.value for point in events.Scalars("best/val_acc")] == pytest.approx([summary["val"]["acc"]])
    assert [point.value for point in events.Scalars("best/val_f1")] == pytest.approx([summary["val"]["f1"]])
    assert {round(point.value, 5) for point in events.Scalars("test/f1")} == {round(summary["test"]["f1"], 5)}
    assert len(events.Scalars("val/f1")) == summary["epochs"]
    assert {round(point.value, 5) for point in events.Scalars("test/acc")} == {round(summary["test"]["acc"], 5)}
    for name in ("val/confusion", "val/mistakes"):
        [shown] = events.Images(name)
        file = finished_run / "figures" / f"{name.replace('/', '_')}.png"
        assert (shown.width, shown.height) == Image.open(file).size
        assert shown.step == summary["best_epoch"] * summary["steps"] // summary["epochs"]


@pytest.mark.slow
def test_the_summary_has_the_time_of_each_phase(finished_run: Path):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert set(summary["time_s"]) == {"train", "data_wait", "val", "test"}
    assert min(summary["time_s"].values()) >= 0
    assert summary["time_s"]["train"] > 0 < summary["time_s"]["test"]
    assert sum(summary["time_s"].values()) < summary["seconds"]
