"""Who decides how images are prepared."""

from imago.images import Preprocess
from imago.training.preprocess import decide_preprocess

NOTHING = dict.fromkeys(("size", "resize", "crop", "interpolation", "mean", "std"))
IMAGENET = {"size": 224, "resize": 256, "crop": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET["interpolation"] = "bicubic"
SMALL = Preprocess(32, 32, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LARGE = Preprocess(200, 250, "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_without_other_wishes_the_data_set_decides():
    assert decide_preprocess(NOTHING, None, SMALL) == (SMALL, "from the data set")


def test_pretrained_weights_decide_everything_for_large_images():
    record, origin = decide_preprocess(NOTHING, IMAGENET, LARGE)
    assert record.to_dict() == IMAGENET
    assert origin == "all from the pretrained weights"


def test_small_images_keep_their_size_and_take_the_weights_mean_and_std():
    record, origin = decide_preprocess(NOTHING, IMAGENET, SMALL)
    assert (record.size, record.resize) == (32, 32)
    assert list(record.mean) == IMAGENET["mean"]
    assert origin == "mean and std from the pretrained weights, the rest from the data set"


def test_weights_of_small_images_decide_everything_for_small_ones():
    of_a_run = {"size": 28, "resize": 30, "crop": "center", "mean": [0.5] * 3, "std": [0.2] * 3}
    record, origin = decide_preprocess(NOTHING, of_a_run, SMALL)
    assert record.to_dict() == of_a_run | {"interpolation": "bilinear"}, "as a record without one meant it"
    assert origin == "all from the pretrained weights"


def test_what_was_typed_beats_the_weights():
    record, origin = decide_preprocess(NOTHING | {"mean": [0.5, 0.5, 0.5]}, IMAGENET, LARGE)
    assert record.mean == (0.5, 0.5, 0.5)
    assert list(record.std) == IMAGENET["std"]
    assert origin.startswith("mean as typed")


def test_a_typed_size_takes_resize_along():
    record, _ = decide_preprocess(NOTHING | {"size": 100}, None, LARGE)
    assert (record.size, record.resize) == (100, 125)
    record, _ = decide_preprocess(NOTHING | {"size": 100, "resize": 110}, None, LARGE)
    assert (record.size, record.resize) == (100, 110)
