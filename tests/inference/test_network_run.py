"""Networks that were trained elsewhere are evaluated as runs, by the names of their classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import network
from PIL import Image
from short_runs import csv_rows, summary

from imago import load_model
from imago.analysis.page import final_test_tta
from imago.errors import ConfigError, DataError
from imago.inference.load import load_classifier
from imago.inference.network_run import finish_network_run, write_network_run
from imago.inference.run_split import match_classes
from imago.model.small_resnet import SmallResNet
from imago.model.torchvision_net import TorchvisionNet
from imago.paths import short_path
from imago.runs.records import read_record

TYPED = {"size": 32, "resize": None, "crop": None, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": None}
NOTHING = dict.fromkeys(TYPED)
DATA = {"_target_": "imago.data.file_datamodule.ImageFolderDataModule", "root": "/images"}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """The settings of a network with weights in the checkpoint of another script, and the names of its classes."""
    torch.manual_seed(0)
    torch.save({"model": SmallResNet(3, 32, width=4).state_dict(), "epoch": 9}, tmp_path / "other.pth")
    (tmp_path / "classes.txt").write_text("bee\nant\n\nwasp\n")
    target = "imago.model.small_resnet.SmallResNet"
    return {"_target_": target, "width": 4, "weights": str(tmp_path / "other.pth"), "freeze": "backbone"}


def test_a_network_with_classes_in_a_list_becomes_a_run(small: dict, tmp_path: Path):
    run = write_network_run(tmp_path / "logs", small, DATA, str(tmp_path / "classes.txt"), TYPED)
    assert run.parent == tmp_path / "logs" / "eval"
    assert run.name.startswith("SmallResNet-")
    classifier = load_classifier(run)
    assert classifier.class_names == ("bee", "ant", "wasp")
    assert (classifier.preprocess.size, classifier.preprocess.resize) == (32, 37)  # as 256 to 224
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    net = SmallResNet(3, 32, width=4).eval()
    net.load_state_dict(torch.load(tmp_path / "other.pth")["model"])
    expected = net((torch.tensor(images) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(load_model(run)(images), expected.detach())
    again = write_network_run(tmp_path / "logs", small, DATA, str(tmp_path / "classes.txt"), TYPED)
    assert again == run
    other = write_network_run(tmp_path / "logs", small, DATA | {"root": "/x"}, str(tmp_path / "classes.txt"), TYPED)
    assert other != run


@pytest.mark.slow
def test_published_weights_have_the_classes_of_imagenet_and_their_preprocess(tmp_path: Path):
    torch.save(network(TorchvisionNet, 1000, 224, name="squeezenet1_0").body.state_dict(), tmp_path / "file.pth")
    settings = {"_target_": "imago.model.torchvision_net.TorchvisionNet", "name": "squeezenet1_0"}
    weights = {"weights": str(tmp_path / "file.pth")}
    classifier = load_classifier(write_network_run(tmp_path, settings | weights, DATA, None, NOTHING))
    assert len(classifier.class_names) == 1000
    assert classifier.class_names[0] == "n01440764 tench"
    assert (classifier.class_names[264][10:], classifier.class_names[474][10:]) == ("Cardigan", "cardigan")
    assert (classifier.preprocess.size, classifier.preprocess.resize) == (224, 256)
    labels = match_classes(["n01440764", "goldfish", "Cardigan", "cardigan", "n02012849 crane"], classifier.class_names)
    assert labels.tolist() == [0, 1, 264, 474, 134]
    with pytest.raises(DataError, match="lacks: 'crane'"):  # a bird and a machine
        match_classes(["crane"], classifier.class_names)


def test_a_network_whose_modules_check_their_version_is_loaded(tmp_path: Path):
    net = network(TorchvisionNet, 3, 64, name="mnasnet0_5")
    torch.save(net.body.state_dict(), tmp_path / "file.pth")
    (tmp_path / "classes.txt").write_text("bee\nant\nwasp\n")
    settings = {"_target_": "imago.model.torchvision_net.TorchvisionNet", "name": "mnasnet0_5"}
    weights = {"weights": str(tmp_path / "file.pth")}
    run = write_network_run(tmp_path, settings | weights, DATA, str(tmp_path / "classes.txt"), NOTHING)
    loaded = load_classifier(run).net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "names", "typed", "fault"),
    [
        ({"weights": None}, "classes.txt", TYPED, r"model\.weights=null is a network without weights"),
        ({}, "classes.txt", NOTHING, r"unknown how images .* type preprocess\.size=\.\.\. preprocess\.mean=\.\.\. pre"),
        ({}, "classes.txt", TYPED | {"resize": 8}, "these settings do not fit together"),
        (
            {},
            None,
            TYPED,
            r"has no values for head\.weight, head\.bias with 1,000 classes and 32 px; type class_names=",
        ),
        ({}, "absent.txt", TYPED, r"class_names=\S+absent\.txt cannot be read"),
        ({"width": 8}, "classes.txt", TYPED, "does not fit this network"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    small: dict, tmp_path: Path, changes: dict, names: str | None, typed: dict, fault: str
):
    file = str(tmp_path / names) if names else None
    with pytest.raises((ConfigError, DataError), match=fault) as caught:
        write_network_run(tmp_path, small | changes, DATA, file, typed)
    assert "\n" not in str(caught.value)


def test_the_results_of_both_splits_are_kept(tmp_path: Path):
    for split, acc in (("test", 0.5), ("val", 0.25), ("test", 0.75)):
        finish_network_run(tmp_path, {"split": split, "acc": acc, "interval_95": [0.0, 1.0], "num_images": 4})
    assert {split: summary(tmp_path)[split]["acc"] for split in ("test", "val")} == {"test": 0.75, "val": 0.25}


def test_a_test_with_several_views_is_marked_and_never_replaces_one_with_one_view(tmp_path: Path):
    found = {"split": "test", "interval_95": [0.0, 1.0], "num_images": 4}
    for tta, acc, expected in (("flip", 0.6, 0.6), ("none", 0.5, 0.5), ("flip", 0.7, 0.5), ("none", 0.4, 0.4)):
        finish_network_run(tmp_path, found | {"tta": tta, "acc": acc})
        test = summary(tmp_path)["test"]
        assert (test["acc"], test.get("tta")) == (expected, "flip" if expected == 0.6 else None)
        assert final_test_tta(read_record(tmp_path)) == ("flip" if expected == 0.6 else "none")


@pytest.mark.slow
def test_a_network_is_evaluated_on_a_folder_with_a_test_part_only_and_predict_and_report_take_it(
    small: dict, tmp_path: Path, command: Callable
):
    for name in ("ant", "bee"):
        (tmp_path / "images" / "test" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 50).save(tmp_path / "images" / "test" / name / "a.png")
    logs = f"paths.log_dir={tmp_path / 'logs'}"
    typed = [f"preprocess.{key}={value}".replace(" ", "") for key, value in TYPED.items() if value]
    model = ["model=small_resnet", "model.width=4", f"model.weights={small['weights']}"]
    data = ["data=image_folder", f"data.root={tmp_path / 'images'}", f"class_names={tmp_path / 'classes.txt'}"]
    done = command("src/eval.py", *model, *data, *typed, logs)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    (run,) = (tmp_path / "logs" / "eval").iterdir()
    assert summary(run)["test"]["num_images"] == 2
    assert {row["true"] for row in csv_rows(run / "eval" / "test" / "predictions.csv")} == {"ant", "bee"}
    predict, export, report = done.stdout.partition("next:\n")[2].replace("IMAGE", str(tmp_path)).splitlines()
    assert export == f"  python src/export.py run={short_path(run)}"  # it takes long, and the tests of export run it
    for line in (predict, report):
        done = command(*line.split()[1:], logs)
        assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["model=squeezenet1_0"],
            "model= needs data that is typed, e.g. data=image_folder data.root=DIR",
        ),
        (["model=squeezenet1_0", "data=shapes", "run=x"], "run=x and model= name two networks; type one of them"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_without_torch(without_torch: Callable, arguments, fault: str):
    done = without_torch("src/eval.py", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert fault in done.stderr
