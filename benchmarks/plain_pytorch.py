"""Train a small CNN on CIFAR-10 with plain PyTorch, in the style of the torchvision tutorials.

    IMAGO_DATA_DIR=data python benchmarks/plain_pytorch.py
    python benchmarks/plain_pytorch.py --root data --epochs 1 --seed 3 --json plain.json

`train_speed.py` compares the project with this script: PIL transforms of one image at a time, worker processes, fp32, a
plain loop, as in the torchvision tutorials. Do not tune it: a faster script is a different benchmark.

CIFAR-10 must exist under the root as `cifar-10-batches-py/`; nothing is downloaded.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

# N batch, C channels, H/W pixels, K classes

NUM_TRAIN_IMAGES = 45_000  # of the 50,000; the other 5,000 validate
NUM_VAL_IMAGES = 5_000
BATCH_SIZE = 128
NUM_WORKERS = 2
MEAN = (0.4914, 0.4822, 0.4465)  # per channel of the 50,000 CIFAR-10 train images, scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)  # same images


class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers: images (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 8 * 8, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(images_NCHW)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def make_loaders(root: str, num_train_images: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Return the train (augmented), validation and test loaders; batches are (N, 3, 32, 32) float32 and (N,) int64.

    The split is drawn from torch's global generator, so it follows the seed. A smaller `num_train_images` takes
    fewer images from the 45,000 and leaves the other two loaders as they are.
    """
    to_normalized = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            *to_normalized,
        ]
    )
    plain = transforms.Compose(to_normalized)
    order = torch.randperm(NUM_TRAIN_IMAGES + NUM_VAL_IMAGES).tolist()
    # Two views of the same 50,000 images, because a Subset shares its parent's transform.
    train = Subset(CIFAR10(root, train=True, transform=augment), order[:num_train_images])
    val = Subset(CIFAR10(root, train=True, transform=plain), order[NUM_TRAIN_IMAGES:])
    test = CIFAR10(root, train=False, transform=plain)
    return (
        DataLoader(train, BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS),
        DataLoader(val, BATCH_SIZE, num_workers=NUM_WORKERS),
        DataLoader(test, BATCH_SIZE, num_workers=NUM_WORKERS),
    )


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Take one step a batch and return the mean loss in nats per image."""
    model.train()
    loss_sum = 0.0
    num_images = 0
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        loss_sum += loss.item() * len(labels)
        num_images += len(labels)
    return loss_sum / num_images


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Return the share of images whose highest logit is the true class, in [0, 1]."""
    model.eval()
    num_correct = 0
    num_images = 0
    for images, labels in loader:
        num_correct += (model(images).argmax(dim=1) == labels).sum().item()
        num_images += len(labels)
    return num_correct / num_images


def cpu_seconds() -> float:
    """Return user + system seconds of this process since it started, and of its finished worker processes.

    The kernel adds a worker's time when it has been waited for, so a worker that is still alive is not counted.
    """
    assert not multiprocessing.active_children(), "every DataLoader iterator was exhausted, which ends its workers"
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Train, validate after each epoch, and test once at the end.

    Returns:
        test_acc in [0, 1]; epochs; train_images, images in one epoch; seconds, wall time after the imports;
        cpu_seconds of the whole process, imports and workers included.
    """
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    train_loader, val_loader, test_loader = make_loaders(args.root, args.num_train_images)
    model = SimpleCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(train_loader))
    for epoch in range(args.epochs):
        train_loss = train_one_epoch(model, train_loader, optimizer, scheduler)
        print(f"epoch {epoch}: train loss {train_loss:.4f}, val acc {evaluate(model, val_loader):.4f}", flush=True)
    test_acc = evaluate(model, test_loader)
    return {
        "test_acc": test_acc,
        "epochs": args.epochs,
        "train_images": args.num_train_images,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds(),
    }


def parse_args() -> argparse.Namespace:
    """Read the command line; the help text is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root",
        default=os.environ.get("IMAGO_DATA_DIR", "data/"),
        help="folder that contains cifar-10-batches-py/ (default: $IMAGO_DATA_DIR, else data/)",
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--num-train-images",
        type=int,
        default=NUM_TRAIN_IMAGES,
        help=f"fewer than {NUM_TRAIN_IMAGES} for a quick trial, not for a measurement",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args()
    if not 1 <= args.num_train_images <= NUM_TRAIN_IMAGES:
        parser.error(f"--num-train-images={args.num_train_images} must be in 1..{NUM_TRAIN_IMAGES}")
    if args.epochs < 1:
        parser.error(f"--epochs={args.epochs} must be at least 1")
    return args


def main() -> None:
    """Measure, print and store."""
    args = parse_args()
    figures = json.dumps(run(args), indent=2)
    print(figures)
    if args.json:
        args.json.write_text(figures + "\n")


if __name__ == "__main__":
    main()
