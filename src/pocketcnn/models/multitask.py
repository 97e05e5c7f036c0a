"""A net for three tasks on 28x28 images: classify an image, rebuild it from a narrow bottleneck, and tell its quarter turns.

Each task has an encoder of the same shape. The encoders are repeated sub-networks side by side; the stages of an hourglass
are repeated sub-networks in a row.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pocketcnn.models.hourglass import conv_block

TASKS = ("classification", "reconstruction", "rotation")


class Encoder(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU; three halve the resolution, the second doubles the channels.

    Args:
        channels: outputs of the first convolution; the others have twice as many.
        in_channels: channels of the image.
    Shape: [batch, in_channels, 28, 28] to [batch, 2 * channels, 4, 4].
    """

    def __init__(self, channels: int, in_channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(in_channels, channels, stride=2),
            *conv_block(channels, 2 * channels, stride=2),
            *conv_block(2 * channels, 2 * channels),
            *conv_block(2 * channels, 2 * channels, stride=2),
        )

    def forward(self, x: Float[Tensor, "batch in_channels 28 28"]) -> Float[Tensor, "batch features 4 4"]:
        return self.layers(x)


class MultiTask(nn.Module):
    """An encoder and a head for each of `TASKS`.

    `tasks` holds only the encoders. A linear layer finds classes and turns from the mean over each feature map. A decoder
    rebuilds the image from `bottleneck` values.

    Args:
        channels: outputs of an encoder's first convolution.
        num_classes: number of classes.
        bottleneck: number of values from which the image is rebuilt.
        in_channels: channels of the image.
    Raises:
        ValueError: an argument below 1.
    Shape: images and turned images, both [batch, in_channels, 28, 28], to class logits [batch, num_classes], rebuilt
        images in [0, 1] of the shape of the images, and logits of the turns [batch, 4].
    """

    def __init__(self, channels: int = 20, num_classes: int = 10, bottleneck: int = 8, in_channels: int = 1) -> None:
        super().__init__()
        if min(channels, num_classes, bottleneck, in_channels) < 1:
            raise ValueError(
                "channels, num_classes, bottleneck and in_channels must be at least 1, "
                f"got {channels}, {num_classes}, {bottleneck}, {in_channels}"
            )
        self.tasks = nn.ModuleList(Encoder(channels, in_channels) for _ in TASKS)
        self.classifier = _pooled(2 * channels, num_classes)
        self.decoder = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * channels * 16, bottleneck), nn.Linear(bottleneck, 16 * 49), nn.ReLU(inplace=True),
            nn.Unflatten(1, (16, 7, 7)),
            nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(16, in_channels, 4, stride=2, padding=1), nn.Sigmoid(),
        )  # fmt: skip
        self.turns = _pooled(2 * channels, 4)

    def forward(
        self, x: Float[Tensor, "batch in_channels 28 28"], turned: Float[Tensor, "batch in_channels 28 28"]
    ) -> tuple[Float[Tensor, "batch num_classes"], Float[Tensor, "batch in_channels 28 28"], Float[Tensor, "batch 4"]]:
        classification, reconstruction, rotation = self.tasks
        return (
            self.classifier(classification(x)),
            self.decoder(reconstruction(x)),
            self.turns(rotation(turned)),
        )


def _pooled(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))
