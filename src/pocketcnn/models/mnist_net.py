"""A net of some 500 parameters for 28x28 images, around one feature layer: the illustrative net of the Global layer's paper.

Its parts are batch norm of the image, ReLU, a 3x3 convolution to `width` channels, the feature layer, average pooling of 4x4
pixels and a linear classifier. Any feature layer fits; the two plain ones are defined here.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class Residual(nn.Module):
    """A module with a shortcut: x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def conv_feature(width: int) -> nn.Module:
    """A 3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(_conv(width, width), nn.BatchNorm2d(width), nn.ReLU())


def residual_feature(width: int) -> nn.Module:
    """A `conv_feature` with a shortcut, then batch norm and ReLU of the sum."""
    return nn.Sequential(Residual(conv_feature(width)), nn.BatchNorm2d(width), nn.ReLU())


class MnistNet(nn.Module):
    """The illustrative net around a feature layer.

    Args:
        feature: makes the feature layer, given the number of channels; the layer must keep that number.
        width: channels of the feature map.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
    Shape: images [batch, in_channels, 28, 28] to logits [batch, num_classes].
    """

    def __init__(
        self, feature: Callable[[int], nn.Module], width: int = 1, num_classes: int = 10, in_channels: int = 1
    ) -> None:
        super().__init__()
        if min(width, num_classes, in_channels) < 1:
            raise ValueError(
                f"width, num_classes and in_channels must be at least 1, got {width}, {num_classes}, {in_channels}"
            )
        self.input_size = (in_channels, 28, 28)
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = _conv(in_channels, width)
        self.feature = feature(width)
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(49 * width, num_classes)

    def forward(self, x: Float[Tensor, "batch in_channels 28 28"]) -> Float[Tensor, "batch num_classes"]:
        x = self.feature(self.conv(self.relu(self.bn(x))))
        return self.fc(self.pool(x).flatten(1))


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
