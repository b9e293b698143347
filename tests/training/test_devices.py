"""Devices are counted before data is read."""

import pytest

from imago.errors import ConfigError
from imago.training import devices
from imago.training.devices import check_batch_size, count_devices


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_num_available", lambda name: {"cpu": 2, "cuda": 1}[name])


def test_devices_may_be_a_number_a_list_or_auto(two_cores):
    assert [count_devices("cpu", wanted) for wanted in (1, 2, "2", [0, 1], "auto")] == [1, 2, 2, 2, 1]


def test_more_devices_than_the_machine_has_are_refused(two_cores):
    with pytest.raises(ConfigError, match=r"trainer.devices=3: this machine has 2 CPU cores\.$"):
        count_devices("cpu", 3)


def test_too_many_gpus_name_the_way_to_the_cpu(two_cores):
    with pytest.raises(ConfigError, match="has 1 GPU; trainer.accelerator=cpu trainer.devices=2 runs on CPU cores"):
        count_devices("cuda", 2)


@pytest.mark.parametrize("wanted", [0, -2])
def test_fewer_than_one_device_is_refused(two_cores, wanted: int):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        count_devices("cpu", wanted)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ConfigError, match="trainer.accelerator=gpu: torch finds no GPU here"):
        count_devices("gpu", 1)


def test_an_indivisible_batch_names_the_nearest_sizes_that_fit():
    check_batch_size(128, 2)
    with pytest.raises(ConfigError, match="data.batch_size=127 cannot .* data.batch_size=126 or data.batch_size=128"):
        check_batch_size(127, 2)
    with pytest.raises(ConfigError, match=r"take data.batch_size=4\.$"):
        check_batch_size(3, 4)
