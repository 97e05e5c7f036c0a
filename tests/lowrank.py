"""A sixth method, written as one in the package would be: every kernel is the product of two thin matrices."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pocketcnn.methods import Method
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments
from pocketcnn.methods._method import Range
from pocketcnn.methods._sites import conv_sites


@dataclass(frozen=True)
class LowRankOptions:
    """How much is stored."""

    rank: int = 2
    """Columns of the first factor."""

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")


class LowRankConv2d(AbstractConv2d):
    """A convolution whose kernel is the product of two thin matrices."""

    condensed_by = "lowrank"

    def __init__(self, *arguments, rank, bias, device, dtype, **keywords):
        super().__init__(*arguments, **keywords)
        rows, columns = self.out_channels, torch.Size(self.weight_shape[1:]).numel()
        self.left = nn.Parameter(torch.randn(rows, rank, device=device, dtype=dtype) / rank**0.5)
        self.right = nn.Parameter(torch.randn(rank, columns, device=device, dtype=dtype) * (2 / columns) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(rows, device=device, dtype=dtype)) if bias else None

    def dense_weight(self, x=None):
        return (self.left @ self.right).view(self.weight_shape)

    def generator_parameters(self):
        return [self.left, self.right]

    def served(self):
        rank, (down, up) = self.left.shape[1], (self.right, self.left)
        first = nn.Conv2d(
            self.in_channels, rank, self.kernel_size, self.stride, self.padding, self.dilation, bias=False,
            padding_mode=self.padding_mode,
        )  # fmt: skip
        second = nn.Conv2d(rank, self.out_channels, 1, bias=self.bias is not None)
        with torch.no_grad():
            first.weight.copy_(down.view(rank, *self.weight_shape[1:]))
            second.weight.copy_(up[:, :, None, None])
            if self.bias is not None:
                second.bias.copy_(self.bias)
        return nn.Sequential(first, second).train(self.training)

    def forward(self, x):
        x, padding = self.pad(x)
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)


LOW_RANK = Method(
    name="lowrank",
    summary="every kernel is a product of two thin matrices",
    source="a test",
    options=LowRankOptions,
    sites=lambda model, options: conv_sites(model, obstacle=lambda conv: "" if conv.groups == 1 else "it has groups"),
    build=lambda sites, options: {
        site.name: LowRankConv2d(**conv_arguments(site.module), rank=options.rank) for site in sites
    },
    searched={"rank": Range(1, 8)},
)
