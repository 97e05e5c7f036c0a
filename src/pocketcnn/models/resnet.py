"""Residual nets, and plain chains of the same shape: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

Four families share one class. `resnet18/34/50/101/152` have four stages (64 to 512 channels); `resnet26` and `resnet38`
are the plain counterparts of RedNet-26 and RedNet-38 (blocks 1-2-4-1 and 2-3-5-2). `resnet20/32/44/56/110` have three
stages of 16, 32 and 64 channels. `resnet32_4stage` has four stages of 16, 32, 64 and 64 channels, with five blocks each.
`plainnet20/32` are the chains without shortcuts that the paper compares with resnet20 and resnet32. Where stride or width
changes, the shortcut is a 1x1 convolution with batch norm. In bottlenecks the 3x3 convolution has the stride. Modules have
the names that torchvision's nets use.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

STEMS = ("imagenet", "small", "deep")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, with a shortcut; the last convolution has four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ConvBlock(nn.Module):
    """A 3x3 convolution with batch norm and ReLU, without a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, channels, 3, stride)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class ResNet(nn.Module):
    """A stem, stages of equal blocks, global average pooling and a linear classifier.

    Args:
        block: `BasicBlock`, `Bottleneck` or `ConvBlock`.
        blocks: number of blocks of each stage.
        channels: channels of each stage, before a bottleneck's expansion.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        stem: `"imagenet"` (7x7, stride 2, max-pool), `"small"` (3x3) or `"deep"` (three 3x3, stride 2, max-pool).
        width: factor for all channels; each product is rounded, and at least 1.
    Raises:
        ValueError: an option is out of range.
    Shape: images [batch, in_channels, height, width] of any size from 1 pixel up to logits [batch, num_classes].
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] | type[ConvBlock],
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"no stem {stem!r}; known: {', '.join(STEMS)}")
        if num_classes < 1 or in_channels < 1:
            raise ValueError(f"num_classes and in_channels must be at least 1, got {num_classes}, {in_channels}")
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"width must be a positive number, not {width}")
        scaled = [max(1, round(c * width)) for c in channels]
        here = scaled[0]
        if stem == "deep":
            half = max(1, here // 2)
            self.conv1: nn.Module = nn.Sequential(
                _conv(in_channels, half, 3, 2), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
                _conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
                _conv(half, here, 3),
            )  # fmt: skip
        else:
            self.conv1 = _conv(in_channels, here, 7, 2) if stem == "imagenet" else _conv(in_channels, here, 3)
        self.bn1 = nn.BatchNorm2d(here)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        self.num_stages = len(blocks)
        for stage, (count, out) in enumerate(zip(blocks, scaled, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            modules = []
            for stride in strides:
                modules.append(block(here, out, stride))
                here = out * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*modules))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(here, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_classes"]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


_FOUR = (64, 128, 256, 512)

BUILDERS: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2), _FOUR),
    "resnet26": partial(ResNet, Bottleneck, (1, 2, 4, 1), _FOUR),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3), _FOUR),
    "resnet38": partial(ResNet, Bottleneck, (2, 3, 5, 2), _FOUR),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3), _FOUR),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3), _FOUR),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3), _FOUR),
    **{
        f"resnet{6 * n + 2}": partial(ResNet, BasicBlock, (n, n, n), (16, 32, 64), num_classes=10, stem="small")
        for n in (3, 5, 7, 9, 18)
    },
    **{
        f"plainnet{6 * n + 2}": partial(
            ResNet, ConvBlock, (2 * n, 2 * n, 2 * n), (16, 32, 64), num_classes=10, stem="small"
        )
        for n in (3, 5)
    },
    "resnet32_4stage": partial(ResNet, BasicBlock, (5, 5, 5, 5), (16, 32, 64, 64), num_classes=10, stem="small"),
}
