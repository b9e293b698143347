"""Measure one side of `gpu.py` in a process of its own: our loader, or a plain loop that trains a ResNet-18.

python benchmarks/gpu_sides.py plain 512    # loader | plain | plain_bf16, and the batch size; prints JSON
"""

import json
import math
import os
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from data import build_data
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import resnet18

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, in [0, 1]
WARM_UP = 5  # batches of the plain loop that are not measured


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def data_in_training(device: torch.device, batch_size: int, on_device: bool) -> Any:
    """Build the data module of CIFAR-10 as it is while a Trainer fits."""
    overrides = (f"data.batch_size={batch_size}", f"data.on_device={on_device}")
    data: Any = build_data("data=cifar10", "augment=crop_flip", *overrides)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    settings: dict[str, Any] = {"training": True, "global_rank": 0, "world_size": 1, "limit_train_batches": 1.0}
    loop, strategy = SimpleNamespace(epoch_loop=progress), SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(fit_loop=loop, strategy=strategy, current_epoch=0, **settings)
    data.setup("fit")
    return data


def images_per_s(data: Any, device: torch.device, num_epochs: int, num_batches: int) -> float:
    """Return the images/s up to the normalized batch on the device, after an epoch that warms up."""
    loader, num_images, start_s = data.train_dataloader(), 0, 0.0
    for epoch in range(num_epochs + 1):
        if epoch == 1:
            wait(device)
            num_images, start_s = 0, time.perf_counter()
        loader.batch_sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            if number == num_batches:
                break
            num_images += len(data.on_after_batch_transfer(move_data_to_device(batch, device), 0)[0])
    wait(device)
    return num_images / (time.perf_counter() - start_s)


def loader(batch_size: int, is_smoke: bool) -> dict[str, list[float]]:
    """Return the images/s of our two paths to the device in each of three rounds."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    num_epochs, num_batches = (1, 3) if is_smoke else (5, 1_000)
    figures: dict[str, list[float]] = {"on_device": [], "from_cpu": []}
    for _ in range(1 if is_smoke else 3):
        for name in figures:
            data = data_in_training(device, batch_size, name == "on_device")
            figures[name].append(images_per_s(data, device, num_epochs, num_batches))
    return figures


def plain(batch_size: int, is_smoke: bool, is_fast: bool = False) -> dict[str, float]:
    """Return the images/s of a plain loop over an epoch, after some batches that warm up.

    It is that of tutorials: PIL transforms in worker processes, fp32, `loss.item()` in each step. `is_fast`: in bf16
    and channels_last, with copies and steps that do not wait for the device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    memory_format = torch.channels_last if is_fast else torch.contiguous_format
    net = net.to(device, memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    crops = (transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip())
    chain = transforms.Compose([*crops, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    dataset = datasets.CIFAR10(os.environ["IMAGO_DATA_DIR"], transform=chain)
    settings = {"num_workers": min(16, os.cpu_count() or 1), "pin_memory": device.type == "cuda", "drop_last": True}
    loss_sum, start_s, num_batches = 0.0, 0.0, 0
    for images, labels in DataLoader(dataset, batch_size, shuffle=True, **settings):
        images = images.to(device, memory_format=memory_format, non_blocking=is_fast)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_fast):
            loss = nn.functional.cross_entropy(net(images), labels.to(device, non_blocking=is_fast))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() if is_fast else loss.item()
        num_batches += 1
        if num_batches == WARM_UP:
            wait(device)
            start_s = time.perf_counter()
        if is_smoke and num_batches == WARM_UP + 2:
            break
    if not math.isfinite(float(loss_sum)):  # waits for the device
        raise RuntimeError("the plain loop diverged")
    return {"images_per_s": (num_batches - WARM_UP) * batch_size / (time.perf_counter() - start_s)}


SIDES = {"loader": loader, "plain": plain, "plain_bf16": partial(plain, is_fast=True)}

if __name__ == "__main__":
    side, size, *smoke = sys.argv[1:]
    print(json.dumps(SIDES[side](int(size), bool(smoke))))
