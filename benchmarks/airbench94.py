"""Train CIFAR-10 with the algorithm of airbench94 on a CPU: the other side of `cpu94.py`.

    IMAGO_DATA_DIR=data python benchmarks/airbench94.py --seed 0 --json OUT

Written from the paper (Jordan 2024, arXiv:2404.00498, section 3) with its hyperparameters; the only changes are those a
CPU needs: bfloat16 autocast in place of half precision, and no compilation. All 50,000 training images, the official
test images, six views of each.
"""

import argparse
import json
import math
import os
import pickle
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_SIZE, EPOCHS = 1024, 9.9
LR, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE = 11.5, 0.85, 0.0153, 64.0  # per 1,024 examples, decoupled from the momentum
LABEL_SMOOTHING, WHITENING_BIAS_EPOCHS, TRANSLATE_PX = 0.2, 3, 2
WIDTHS, NORM_MOMENTUM, LOGIT_SCALE, WHITENING_EPS = (64, 256, 256), 0.6, 1 / 9, 5e-4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Block(nn.Sequential):
    """Two convolutions; the first halves the resolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(
            convolution(width_in, width), nn.MaxPool2d(2), norm(width), nn.GELU(), convolution(width, width),
            norm(width), nn.GELU(),
        )  # fmt: skip


def convolution(width_in: int, width: int) -> nn.Conv2d:
    """Return a 3x3 convolution that starts with the identity of its inputs."""
    layer = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[: min(width_in, width)])
    return layer


def norm(width: int) -> nn.BatchNorm2d:
    """Return a BatchNorm whose scale stays 1."""
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=1 - NORM_MOMENTUM)
    layer.weight.requires_grad_(False)
    return layer


class Net(nn.Module):
    """Whitening, three blocks, global maximum, head."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.blocks = nn.Sequential(nn.GELU(), *map(Block, (24, *WIDTHS), WIDTHS), nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1], 10, bias=False)
        patches = functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + WHITENING_EPS).sqrt()).T.reshape(12, 3, 2, 2)
        self.whitening.weight.data.copy_(torch.cat([filters, -filters]))
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 3, 32, 32) to logits (N, 10)."""
        return self.head(self.blocks(self.whitening(images))) * LOGIT_SCALE


def read(root: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Return normalized images float32 (N, 3, 32, 32) and labels int64 (N,) of CIFAR-10's files."""
    parts = [pickle.loads((root / "cifar-10-batches-py" / name).read_bytes(), encoding="bytes") for name in names]
    pixels = torch.from_numpy(np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    labels = torch.tensor([label for part in parts for label in part[b"labels"]])
    return (pixels.float() / 255 - mean) / std, labels


def crop(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random 32 x 32 crop of each image."""
    shifts = torch.randint(0, 2 * TRANSLATE_PX + 1, (len(padded), 2), generator=generator)
    cropped = torch.empty((len(padded), 3, 32, 32))
    for top in range(2 * TRANSLATE_PX + 1):
        for left in range(2 * TRANSLATE_PX + 1):
            chosen = (shifts == torch.tensor([top, left])).all(dim=1)
            cropped[chosen] = padded[chosen, :, top : top + 32, left : left + 32]
    return cropped


def autocast() -> torch.autocast:
    """Compute in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


def predict(net: Net, images: Tensor) -> Tensor:
    """Return the mean logits of six views: the image, two shifts by a pixel, and the mirror images of all."""
    padded = functional.pad(images, (1, 1, 1, 1), "reflect")
    views = [(images, 0.5), (padded[:, :, 0:32, 0:32], 0.25), (padded[:, :, 2:34, 2:34], 0.25)]
    return sum(weight / 2 * (net(view) + net(view.flip(-1))).float() for view, weight in views)


def optimizer_of(net: Net) -> torch.optim.SGD:
    """Return SGD with two learning rates: of the biases of norms, and of all else."""
    scale = BATCH_SIZE * (1 + 1 / (1 - MOMENTUM))
    lr, weight_decay = LR / scale, WEIGHT_DECAY * BATCH_SIZE / scale
    of_blocks = [parameter for parameter in net.blocks.parameters() if parameter.requires_grad]
    biases = [parameter for parameter in of_blocks if parameter.ndim == 1]
    weights = [net.whitening.bias, net.head.weight, *(parameter for parameter in of_blocks if parameter.ndim > 1)]
    groups = [
        {"params": biases, "lr": lr * BIAS_SCALE, "weight_decay": weight_decay / (lr * BIAS_SCALE)},
        {"params": weights, "lr": lr, "weight_decay": weight_decay / lr},
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def train(images: Tensor, labels: Tensor, seed: int) -> Net:
    """Return a trained network."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Net(images[:5000]).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(net)
    steps_per_epoch = len(images) // BATCH_SIZE
    num_steps = math.ceil(EPOCHS * steps_per_epoch)
    peak = int(0.23 * num_steps)
    rise, fall = np.linspace(0.2, 1, peak, endpoint=False), np.linspace(1, 0.07, num_steps - peak + 1)
    factors = np.concatenate([rise, fall])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(factors[step]))
    slow = [tensor.detach().clone() for tensor in net.state_dict().values()]
    is_flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(is_flipped.view(-1, 1, 1, 1), images.flip(-1), images)  # alternates from epoch to epoch
    padded = functional.pad(images, (TRANSLATE_PX,) * 4, "reflect")
    net.train()
    for step in range(num_steps):
        epoch, batch = divmod(step, steps_per_epoch)
        if batch == 0:
            order = torch.randperm(len(images), generator=generator)
            epoch_images = crop(padded, generator)
            if epoch % 2:
                epoch_images = epoch_images.flip(-1)
            net.whitening.bias.requires_grad_(epoch < WHITENING_BIAS_EPOCHS)
        chosen = order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]
        inputs = epoch_images[chosen].contiguous(memory_format=torch.channels_last)
        with autocast():
            logits = net(inputs)
        loss = functional.cross_entropy(
            logits.float(), labels[chosen], label_smoothing=LABEL_SMOOTHING, reduction="sum"
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 5 == 0:  # lookahead
            average(net, slow, keep=0.95**5 * ((step + 1) / num_steps) ** 3)
    average(net, slow, keep=1.0)
    return net


@torch.no_grad()
def average(net: Net, slow: list[Tensor], keep: float) -> None:
    """Move the slow weights towards the fast ones, and copy them back."""
    for fast, kept in zip(net.state_dict().values(), slow, strict=True):
        if fast.is_floating_point():
            kept.lerp_(fast, 1 - keep)
            fast.copy_(kept)


def main() -> None:
    """Train, test and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("IMAGO_DATA_DIR", "data")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="output file")
    args = parser.parse_args()
    train_images, train_labels = read(args.root, [f"data_batch_{number}" for number in range(1, 6)])
    start_s = time.perf_counter()
    net = train(train_images, train_labels, args.seed).eval()
    images, labels = read(args.root, ["test_batch"])
    with torch.no_grad(), autocast():
        batches = [part.contiguous(memory_format=torch.channels_last) for part in images.split(1000)]
        predicted = torch.cat([predict(net, part).argmax(1) for part in batches])
    content = {"acc": (predicted == labels).float().mean().item(), "wall_s": time.perf_counter() - start_s}
    print(json.dumps(content))
    if args.json:
        args.json.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
