"""The precision that a machine gets."""

import pytest

from imago.errors import ConfigError
from imago.training import precision
from imago.training.precision import choose_precision


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_bf16_where_the_cpu_computes_in_it(no_gpu, monkeypatch, has_bf16: bool, expected: str):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_bf16)
    assert choose_precision("auto", "auto")[0] == expected


def test_what_is_typed_is_taken_as_it_is(no_gpu):
    assert choose_precision("32-true", "cpu") == ("32-true", "as typed")


def test_fp16_without_a_gpu_is_refused(no_gpu):
    with pytest.raises(ConfigError, match="trainer.precision=16-mixed needs a GPU"):
        choose_precision("16-mixed", "auto")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_on_a_gpu_asks_the_gpu(monkeypatch, has_bf16: bool, expected: str):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card")
    precision, why = choose_precision("auto", "auto")
    assert precision == expected
    assert why.startswith("Card")
