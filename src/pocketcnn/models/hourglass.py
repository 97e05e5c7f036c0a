"""Stacked hourglasses: a net that gives a heatmap for each joint and refines them stage by stage.

A stem halves the image. Then equal sub-networks, the stages, follow one another; each goes down to a quarter of the
resolution and up again. Each stage has a head that turns its output into a heatmap for every joint. The next stage gets
the stage's input, output and heatmaps, added. All stages are trained on the same targets.

Source: Newell, Yang, Deng: Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016. Here at a size that a
processor trains in minutes: one 3x3 convolution in place of each residual module, two levels in place of four, and no
convolution where features are added.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Hourglass(nn.Module):
    """Six 3x3 convolutions with batch norm and ReLU: one at full size, three to a quarter of it, two back up.

    On the way up, features are enlarged by repeating pixels and added to those of the same size on the way down.

    Args:
        channels: of the input, the output and all between.
    Shape: [batch, channels, height, width] to the same, of any height and width of at least 1 pixel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_block(channels, channels)
        self.down1 = conv_block(channels, channels, stride=2)
        self.down2 = conv_block(channels, channels, stride=2)
        self.bottom = conv_block(channels, channels)
        self.up1 = conv_block(channels, channels)
        self.up2 = conv_block(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        full = self.enter(x)
        half = self.down1(full)
        y = self.bottom(self.down2(half))
        y = self.up1(half + F.interpolate(y, half.shape[2:]))
        return self.up2(full + F.interpolate(y, full.shape[2:]))


class StackedHourglass(nn.Module):
    """A stem, then hourglasses one after the other, each with a head.

    `stages` holds only the hourglasses. `heads` and `merges` are 1x1 convolutions, from features to heatmaps and from
    heatmaps back to features.

    Args:
        num_stages: number of hourglasses.
        channels: channels of all feature maps.
        num_joints: number of heatmaps of each stage.
        in_channels: channels of the image.
    Raises:
        ValueError: an argument below 1.
    Shape: images [batch, in_channels, height, width] to heatmaps [batch, num_stages, num_joints, map_height, map_width]
        of half the height and width, rounded up.
    """

    def __init__(self, num_stages: int = 4, channels: int = 24, num_joints: int = 14, in_channels: int = 3) -> None:
        super().__init__()
        if min(num_stages, channels, num_joints, in_channels) < 1:
            raise ValueError(
                "num_stages, channels, num_joints and in_channels must be at least 1, "
                f"got {num_stages}, {channels}, {num_joints}, {in_channels}"
            )
        self.stem = nn.Sequential(*conv_block(in_channels, channels, stride=2), *conv_block(channels, channels))
        self.stages = nn.ModuleList(Hourglass(channels) for _ in range(num_stages))
        self.heads = nn.ModuleList(_head(channels, num_joints) for _ in range(num_stages))
        self.merges = nn.ModuleList(nn.Conv2d(num_joints, channels, 1, bias=False) for _ in range(num_stages - 1))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch num_stages num_joints map_height map_width"]:
        x = self.stem(x)
        heatmaps = []
        for number, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            y = stage(x)
            heatmaps.append(head(y))
            if number < len(self.merges):
                x = x + y + self.merges[number](heatmaps[-1])
        return torch.stack(heatmaps, 1)


def _head(channels: int, num_joints: int) -> nn.Conv2d:
    """A 1x1 convolution to heatmaps; they start near 0, because nearly all of the targets are 0."""
    head = nn.Conv2d(channels, num_joints, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return head


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, Kaiming fan-out, with batch norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
