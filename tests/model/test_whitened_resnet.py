"""WhitenedResNet: number of parameters, shapes, first values, and which parameters train."""

import pytest
import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.model.stem import luminance
from imago.model.whitened_resnet import WhitenedResNet


def build(num_classes: int = 5, image_size: int = 32, widths: tuple[int, ...] = (32, 32, 48)) -> WhitenedResNet:
    torch.manual_seed(0)
    return WhitenedResNet(num_classes, image_size, widths, logit_scale=1 / 9)


def photos(count: int = 64, size: int = 32) -> Tensor:
    """Images with correlated neighbors and colors, like photographs."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=generator)
    gray = torch.randn(count, 1, size // 2, size // 2, generator=generator)
    parts = [nn.functional.interpolate(part, size=(size, size), mode="bilinear") for part in (coarse, gray)]
    return parts[0] + 2 * parts[1] + 0.1 * torch.randn(count, 3, size, size, generator=generator)


def test_with_the_widths_of_its_config_it_has_a_million_parameters(compose):
    net = WhitenedResNet(10, 32, compose("model=whitened_resnet").model.widths, logit_scale=1 / 9)
    whitening = 24 * 12 + 24
    blocks = sum(9 * w * (w_in + w) + 4 * w for w_in, w in [(24, 64), (64, 128), (128, 256)])
    assert sum(parameter.numel() for parameter in net.parameters()) == whitening + blocks + 2560 == 1_161_272


@pytest.mark.parametrize("image_size", [9, 20, 32, 50])
def test_logits_have_a_column_for_each_class(image_size: int):
    assert build(7, image_size)(torch.zeros(3, 3, image_size, image_size)).shape == (3, 7)


def test_a_network_for_one_size_takes_others():
    assert build(image_size=32)(torch.zeros(2, 3, 20, 24)).shape == (2, 5)


def test_images_too_small_for_the_number_of_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"needs 9 px, and they have 8; .* preprocess.size=9"):
        build(image_size=8)
    build(image_size=8, widths=(32, 48))


def test_a_convolution_starts_as_the_identity_on_its_input_channels():
    features = torch.randn(2, 32, 8, 8)
    first = build().blocks[2].down[0](features)
    torch.testing.assert_close(first[:, :32], features)
    wider = build().blocks[3].down[0](features)
    torch.testing.assert_close(wider[:, :32], features)
    assert (wider[:, 32:] - 0).abs().min() > 0


def test_without_residual_sums_a_block_is_its_second_layer():
    torch.manual_seed(0)
    net = WhitenedResNet(5, 32, (32, 32, 48), 1 / 9, residual=False)
    features = torch.randn(2, 32, 8, 8)
    block = net.blocks[2]
    assert torch.equal(block(features), block.layer(block.down(features)))
    assert [*net.state_dict()] == [*build().state_dict()]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_first_channels_become_uncorrelated_and_of_variance_one_with_both_signs(in_channels: int):
    net, images = WhitenedResNet(5, 32, (32, 32, 48), 1 / 9, in_channels), photos()
    net.initialize_from(images)
    num_directions = 4 * in_channels
    inputs = images if in_channels == 3 else luminance(images)
    channels = net.whitening(inputs).transpose(0, 1).flatten(1)[:num_directions].double()
    covariance = channels @ channels.T / channels.shape[1]
    raw_covariance = nn.functional.unfold(inputs, 2).transpose(0, 1).flatten(1).cov()
    assert (raw_covariance - raw_covariance.diag().diag()).abs().max() > 1
    torch.testing.assert_close(covariance, torch.eye(num_directions, dtype=torch.float64), atol=0.06, rtol=0)
    torch.testing.assert_close(net.whitening.weight[:num_directions], -net.whitening.weight[num_directions:])
    assert net(images).shape == (64, 5)


def test_images_without_contrast_result_in_finite_weights():
    net = build()
    net.initialize_from(torch.zeros(4, 3, 32, 32))
    assert net.whitening.weight.isfinite().all()


def test_the_memory_order_is_kept():
    net = build().to(memory_format=torch.channels_last)
    net.initialize_from(photos(4).to(memory_format=torch.channels_last))
    assert net.whitening.weight.is_contiguous(memory_format=torch.channels_last)


def test_all_but_the_first_filters_and_the_scales_of_norms_get_a_gradient():
    net = build()
    net.initialize_from(photos())
    net(photos()).square().sum().backward()
    frozen = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert frozen == {"whitening.weight"} | {
        f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    assert [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any()] == []


def test_the_scale_is_a_factor_on_the_logits():
    small, large = build(), build()
    large.logit_scale = 2 * small.logit_scale
    small.eval(), large.eval()
    images = photos(3)
    torch.testing.assert_close(large(images), 2 * small(images))
