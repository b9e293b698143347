"""SimpleCNN: two convolutions and two linear layers, for a laptop and a first run on any dataset."""

from torch import Tensor, nn

from imago.errors import ConfigError


class SimpleCNN(nn.Module):
    """conv3x3-32, pool, conv3x3-64, pool, fc-512, head, with ReLU between; about 2.1 M parameters at 32 px and above.

    Args:
        num_classes: K, width of the head; comes from the data.
        image_size: side of the input in pixels; comes from the preprocess record; at least 4.
        hidden_features: width of the layer before the head; 512 is our own choice.
        dropout: share of hidden features dropped in training, in [0, 1).
    """

    def __init__(self, num_classes: int, image_size: int, hidden_features: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        if image_size < 4:
            raise ConfigError(f"model=simple_cnn halves images twice; preprocess.size={image_size} is below 4.")
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            # Larger images are pooled to 8 x 8 too: the next layer would have 100 M weights at 224 px.
            nn.AdaptiveAvgPool2d(8) if image_size > 32 else nn.Identity(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * min(8, image_size // 4) ** 2, hidden_features),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        return self.classifier(self.features(images))
