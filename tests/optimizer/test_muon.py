"""Muon against `torch.optim.Muon` on matrices and convolutions, and against AdamW on vectors."""

import copy

import pytest
import torch
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.optimizer.muon import Muon, orthogonalize

SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


def optimize(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, grads: list[Tensor]) -> Tensor:
    for grad in grads:
        parameter.grad = grad.clone().reshape(parameter.shape)
        optimizer.step()
    return parameter.detach()


@pytest.fixture
def grads() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 18, generator=generator) for _ in range(5)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("is_tall", [True, False])
def test_a_matrix_is_updated_as_by_torchs_muon(grads: list[Tensor], nesterov: bool, is_tall: bool):
    grads = [grad.T.contiguous() if is_tall else grad for grad in grads]
    ours, theirs = nn.Parameter(torch.ones_like(grads[0])), nn.Parameter(torch.ones_like(grads[0]))
    own = {**SETTINGS, "nesterov": nesterov}
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **own)
    torch.testing.assert_close(optimize(Muon([ours], **own), ours, grads), optimize(reference, theirs, grads))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_filters_of_a_convolution_are_updated_as_the_rows_of_a_matrix(grads: list[Tensor], memory_format):
    matrix = nn.Parameter(torch.ones(6, 18))
    filters = nn.Parameter(torch.ones(6, 2, 3, 3).to(memory_format=memory_format))
    expected = optimize(Muon([matrix], **SETTINGS), matrix, grads)
    moved = optimize(Muon([filters], **SETTINGS), filters, grads)
    torch.testing.assert_close(moved.flatten(1), expected)
    assert filters.is_contiguous(memory_format=memory_format)


def test_a_relative_step_changes_a_convolution_of_constant_norm_by_lr(grads: list[Tensor]):
    start = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    filters = nn.Parameter(start.clone())
    moved = optimize(Muon([filters], lr=0.1, relative=True), filters, grads[:1])
    normalized = start * 6**0.5 / start.norm()
    torch.testing.assert_close(normalized.norm(), torch.tensor(6**0.5))
    step = (normalized - moved).flatten(1) / 0.1
    torch.testing.assert_close(step, orthogonalize(grads[0]).float(), atol=0.05, rtol=0)  # of bf16
    again = optimize(Muon([filters], lr=0.0, relative=True), filters, grads[:1])
    torch.testing.assert_close(again.norm(), torch.tensor(6**0.5))


def test_a_state_from_before_relative_steps_continues(grads: list[Tensor]):
    matrix = nn.Parameter(torch.ones(6, 18))
    optimizer = Muon([matrix], **SETTINGS)
    optimize(optimizer, matrix, grads[:2])
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["relative"]
    resumed = Muon([copied := nn.Parameter(matrix.detach().clone())], **SETTINGS)
    resumed.load_state_dict(state)
    torch.testing.assert_close(optimize(resumed, copied, grads[2:]), optimize(optimizer, matrix, grads[2:]))


@pytest.mark.parametrize("shape", [(108,), (6, 18), (1, 108, 1, 1)])
def test_with_relative_steps_all_but_convolutions_are_updated_as_by_adamw(grads: list[Tensor], shape: tuple[int, ...]):
    ours, theirs = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    expected = optimize(torch.optim.AdamW([theirs], lr=0.04, weight_decay=0.0), theirs, grads)
    torch.testing.assert_close(optimize(Muon([ours], lr=0.1, relative=True), ours, grads), expected)


@pytest.mark.parametrize("shape", [(108,), (1, 1, 108)])
def test_a_vector_or_token_is_updated_as_by_adamw(grads: list[Tensor], shape: tuple[int, ...]):
    ours, theirs = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(108))
    expected = optimize(torch.optim.AdamW([theirs], **SETTINGS), theirs, grads)
    torch.testing.assert_close(optimize(Muon([ours], **SETTINGS), ours, grads).flatten(), expected)


def test_singular_values_come_near_one(grads: list[Tensor]):
    values = torch.linalg.svdvals(orthogonalize(grads[0]).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_an_interrupted_optimizer_continues_where_it_was(grads: list[Tensor], tmp_path):
    weight, bias = nn.Parameter(torch.ones(6, 18)), nn.Parameter(torch.ones(108))
    optimizer = Muon([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], **SETTINGS)
    for parameter in (weight, bias):
        optimize(optimizer, parameter, grads[:2])
    torch.save(optimizer.state_dict(), tmp_path / "state")
    other_weight, other_bias = copy.deepcopy(weight), copy.deepcopy(bias)
    resumed = Muon([{"params": [other_weight]}, {"params": [other_bias]}], lr=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for grad in grads[2:]:
        for parameter in (weight, bias, other_weight, other_bias):
            parameter.grad = grad.reshape(parameter.shape)
        optimizer.step()
        resumed.step()
    assert torch.equal(weight, other_weight)
    assert torch.equal(bias, other_bias)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_outside_the_range_is_refused(momentum: float):
    with pytest.raises(ConfigError, match=f"optimizer.momentum={momentum} must be"):
        Muon([nn.Parameter(torch.ones(2))], momentum=momentum, **SETTINGS)
