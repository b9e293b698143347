"""Test-time augmentation: which views exist, and that their probabilities are averaged."""

import pytest
import torch
from torch import Tensor

from imago.images import TTA_MODES
from imago.task.tta import predict_with_tta, shift


class RecordingNet:
    """A network whose logits are the first pixel and 0; records its inputs."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        corner = images[:, 0, 0, 0].float()
        return torch.stack([corner, torch.zeros_like(corner)], dim=1)


def image() -> Tensor:
    """Return rows 0 1 2, 3 4 5, 6 7 8 in each channel: (1, 3, 3, 3)."""
    return torch.arange(9.0).view(1, 1, 3, 3).repeat(1, 3, 1, 1)


def test_tta_none_calls_the_network_once():
    net = RecordingNet()
    assert torch.equal(predict_with_tta(net, image(), "none"), torch.zeros(1, 2))
    assert len(net.inputs) == 1


def test_flip_averages_the_probabilities_of_the_image_and_its_mirror_image():
    logits = predict_with_tta(RecordingNet(), image(), "flip")
    expected = (torch.tensor([0.0, 0.0]).softmax(0) + torch.tensor([2.0, 0.0]).softmax(0)) / 2
    torch.testing.assert_close(logits.softmax(dim=1)[0], expected)
    torch.testing.assert_close(logits.exp()[0], expected)


def test_flip_shift_weights_the_unshifted_views_twice():
    net = RecordingNet()
    logits = predict_with_tta(net, image(), "flip_shift")
    # The image and its mirror image, then moved up and left, then down and right.
    corners, weights = [0, 2, 4, 5, 0, 1], [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert [int(images[0, 0, 0, 0]) for images in net.inputs] == corners
    probabilities = torch.tensor([[float(corner), 0.0] for corner in corners]).softmax(dim=1)
    torch.testing.assert_close(logits.exp()[0], torch.tensor(weights) @ probabilities)


def test_flip_shift_unsure_adds_the_shifts_to_the_images_whose_two_views_are_not_clear():
    net = RecordingNet()
    bright, gray = torch.full((1, 3, 3, 3), 5.0), image() / 10  # the first logit: 5 in all views; 0 and 0.2
    logits = predict_with_tta(net, torch.cat([bright, gray]), "flip_shift_unsure")
    assert [len(images) for images in net.inputs] == [2, 2, 1, 1, 1, 1]
    torch.testing.assert_close(logits[:1], predict_with_tta(RecordingNet(), bright, "flip"))
    torch.testing.assert_close(logits[1:], predict_with_tta(RecordingNet(), gray, "flip_shift"))


def test_flip_shift_unsure_has_two_views_of_images_that_are_all_clear():
    net = RecordingNet()
    predict_with_tta(net, torch.full((2, 3, 3, 3), 5.0), "flip_shift_unsure")
    assert len(net.inputs) == 2


@pytest.mark.parametrize(
    ("down", "right", "rows"),
    [
        (0, 0, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        (1, 0, [[0, 1, 2], [0, 1, 2], [3, 4, 5]]),
        (-1, -1, [[4, 5, 5], [7, 8, 8], [7, 8, 8]]),
    ],
)
def test_a_shift_moves_the_image_and_repeats_its_edge(down: int, right: int, rows: list[list[int]]):
    assert shift(image(), down, right)[0, 0].tolist() == rows


def test_uint8_images_stay_uint8():
    net = RecordingNet()
    predict_with_tta(net, image().to(torch.uint8), "flip_shift")
    assert {images.dtype for images in net.inputs} == {torch.uint8}


def test_a_probability_that_rounds_to_zero_has_a_finite_logarithm():
    assert predict_with_tta(lambda images: torch.tensor([[0.0, -1e4]]), image(), "flip").isfinite().all()


def test_every_name_that_the_check_accepts_has_its_number_of_views():
    nets = {tta: RecordingNet() for tta in TTA_MODES}
    for tta, net in nets.items():
        predict_with_tta(net, image() / 10, tta)  # two views are not clear
    num_views = {tta: len(net.inputs) for tta, net in nets.items()}
    assert num_views == {"none": 1, "flip": 2, "flip_shift": 6, "flip_shift_unsure": 6}
