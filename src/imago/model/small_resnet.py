"""SmallResNet: a residual network for CPUs, with 8 layers and 78,000 parameters or more."""

from torch import Tensor, nn
from torch.nn import functional

from imago.images import MAX_SMALL_PX


class SmallResNet(nn.Module):
    """conv3x3, three stages of residual blocks at full, half and quarter resolution, global mean, head.

    Source: He et al. 2016, section 4.2 (arXiv:1512.03385), whose CIFAR nets have 6 n + 2 layers; n = 1 is the common
    ResNet-8. Here a block that changes the width has a 1x1 convolution in its shortcut.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record. Over 64 px the first convolution has
            stride 4, so that the stages work at the resolution of small images.
        width: channels of the first stage; doubled in each of the others.
        blocks_per_stage: n of the 6 n + 2 layers.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 16, blocks_per_stage: int = 1) -> None:
        super().__init__()
        stride = 1 if image_size <= MAX_SMALL_PX else 4
        self.stem = nn.Conv2d(3, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            _stage(width, width, blocks_per_stage, stride=1),
            _stage(width, 2 * width, blocks_per_stage, stride=2),
            _stage(2 * width, 4 * width, blocks_per_stage, stride=2),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        features = self.stages(functional.relu(self.norm(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """relu(x + conv-norm-relu-conv-norm(x)), with a 1x1 convolution for x where the shape changes."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        is_same = stride == 1 and in_width == width
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, in_width, H, W) to (N, width, H / stride, W / stride)."""
        inner = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


def _stage(in_width: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """Build the blocks of one width; the first has the stride."""
    first = ResidualBlock(in_width, width, stride)
    return nn.Sequential(first, *(ResidualBlock(width, width, stride=1) for _ in range(num_blocks - 1)))
