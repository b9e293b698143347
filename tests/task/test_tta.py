"""Test-time augmentation: which views there are, and that their probabilities are averaged."""

import pytest
import torch
from torch import Tensor

from imago.images import TTA
from imago.task.tta import predict_with_tta, shift


class Seen:
    """A network that answers by the first pixel, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        corner = images[:, 0, 0, 0].float()
        return torch.stack([corner, torch.zeros_like(corner)], dim=1)


def image() -> Tensor:
    """3 rows of 0 1 2, 3 4 5, 6 7 8, in each channel: (1, 3, 3, 3)."""
    return torch.arange(9.0).view(1, 1, 3, 3).repeat(1, 3, 1, 1)


def test_none_is_the_network_itself():
    net = Seen()
    assert torch.equal(predict_with_tta(net, image(), "none"), torch.zeros(1, 2))
    assert len(net.shown) == 1


def test_flip_averages_the_probabilities_of_the_image_and_its_mirror_image():
    logits = predict_with_tta(Seen(), image(), "flip")
    expected = (torch.tensor([0.0, 0.0]).softmax(0) + torch.tensor([2.0, 0.0]).softmax(0)) / 2
    torch.testing.assert_close(logits.softmax(dim=1)[0], expected)
    torch.testing.assert_close(logits.exp()[0], expected)


def test_flip_shift_weighs_the_middle_twice():
    net = Seen()
    logits = predict_with_tta(net, image(), "flip_shift")
    # The image and its mirror image, then moved up and left, then down and right.
    corners, weights = [0, 2, 4, 5, 0, 1], [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert [int(images[0, 0, 0, 0]) for images in net.shown] == corners
    answers = torch.tensor([[float(corner), 0.0] for corner in corners]).softmax(dim=1)
    torch.testing.assert_close(logits.exp()[0], torch.tensor(weights) @ answers)


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


def test_bytes_stay_bytes():
    net = Seen()
    predict_with_tta(net, image().to(torch.uint8), "flip_shift")
    assert {images.dtype for images in net.shown} == {torch.uint8}


def test_a_probability_that_rounds_to_nothing_has_a_finite_logarithm():
    assert predict_with_tta(lambda images: torch.tensor([[0.0, -1e4]]), image(), "flip").isfinite().all()


@pytest.mark.parametrize("tta", TTA)
def test_every_name_that_the_check_lets_through_is_known(tta: str):
    assert predict_with_tta(Seen(), image(), tta).shape == (1, 2)
