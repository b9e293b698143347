"""Classifier: normalization, memory order, state, the images it accepts, and the inputs of the head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imago.images import Preprocess
from imago.model.classifier import Classifier

PREPROCESS = Preprocess(2, 2, "center", mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))


def test_each_channel_is_normalized_by_its_own_mean_and_std():
    inputs = Classifier(nn.Identity(), ["a", "b"], PREPROCESS)(
        torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2)
    )
    assert inputs.dtype == torch.float32
    # black and white: (0 - mean) / std and (1 - mean) / std of red, green and blue
    torch.testing.assert_close(inputs[0, :, 0], torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-4.0, 0.0]]))


def test_the_network_gets_channels_last_memory():
    inputs = Classifier(nn.Identity(), ["a", "b"], PREPROCESS)(torch.zeros(4, 3, 2, 2, dtype=torch.uint8))
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_its_state_contains_the_network_and_nothing_else():
    state = Classifier(nn.Linear(2, 2), ["a", "b"], PREPROCESS).state_dict()
    assert set(state) == {"net.weight", "net.bias"}


def test_files_are_read_as_predict_py_reads_them(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 3), np.uint8)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    model = Classifier(nn.Flatten(), ["a", "b"], PREPROCESS)
    read = model.read(*map(str, files))
    assert (read.shape, read.dtype) == ((2, 3, 2, 2), np.uint8)
    # The shorter side becomes 2 px, and the center of the longer one remains.
    reference = [
        Image.fromarray(image).resize((4, 2), Image.Resampling.BILINEAR).crop((1, 0, 3, 2)) for image in pixels
    ]
    np.testing.assert_array_equal(read, np.stack([np.asarray(image).transpose(2, 0, 1) for image in reference]))
    assert model(read).shape == (2, 12)


IMAGES = torch.arange(36, dtype=torch.uint8).reshape(3, 3, 2, 2)


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        *(
            (IMAGES.to(dtype), r"cast values in 0 \.\. 255 to uint8")
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ),
        *((IMAGES.to(dtype), r"cast values in 0 \.\. 255 to uint8") for dtype in (torch.int64, torch.int8, torch.bool)),
        (IMAGES / 255, r"multiply values in 0 \.\. 1 by 255 and round them first"),
        (IMAGES.numpy() / 255, r"got float64 \(3, 3, 2, 2\)"),
        (IMAGES.permute(0, 2, 3, 1), "the channels come before height and width"),
        (IMAGES[0].permute(1, 2, 0).numpy(), "the channels come before height and width"),
        (IMAGES[0], r"add the batch axis with images\[None\]"),
        (IMAGES[:, :1], "repeat a gray channel three times"),
        (IMAGES[:, [0, 1, 2, 2]], r"got uint8 \(3, 4, 2, 2\)"),
        (IMAGES.repeat(1, 1, 2, 2), r"got uint8 \(3, 3, 4, 4\); imago\.images\.read_image and resize_and_crop"),
    ],
)
def test_images_of_another_type_layout_or_size_are_refused(images: torch.Tensor | np.ndarray, remedy: str):
    model = Classifier(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), ["a", "b"], PREPROCESS)
    for method in (model, model.probabilities, model.features):
        with pytest.raises(ValueError, match=r"^expected images of uint8 \(N, 3, 2, 2\), .*" + remedy):
            method(images)


def test_an_array_is_taken_as_a_tensor_is():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), ["a", "b"], PREPROCESS)
    images = IMAGES.numpy()[:, :, ::-1]  # a view with a negative stride
    images.flags.writeable = False
    torch.testing.assert_close(model.probabilities(images), model.probabilities(IMAGES.flip(2)))


def test_features_are_the_inputs_of_the_last_linear_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    model = Classifier(net, ["a", "b"], PREPROCESS)
    images = torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8)
    features = model.features(images)
    assert features.shape == (3, 5)
    torch.testing.assert_close(net[3](features), model(images))
    assert not net[3]._forward_pre_hooks


def test_features_before_a_last_convolution_are_means_over_height_and_width():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(net, ["a", "b"], PREPROCESS)
    images = torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8)
    features = model.features(images)
    assert features.shape == (3, 5)
    torch.testing.assert_close(net[2](features[:, :, None, None])[:, :, 0, 0], model(images))


def test_a_network_without_layers_has_no_features():
    with pytest.raises(ValueError, match="Identity has no linear layer or convolution"):
        Classifier(nn.Identity(), ["a"], PREPROCESS).features(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
