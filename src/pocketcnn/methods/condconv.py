"""CondConv: every image is convolved with its own mixture of a few expert kernels.

A router (global average pool, linear layer, sigmoid) looks at the layer's input and weighs the experts; mixing kernels
instead of outputs costs one convolution however many experts there are. It buys accuracy for multiply-adds, not for
bytes: the experts are all stored.

Source: Yang, Bender, Le, Ngiam: CondConv: Conditionally Parameterized Convolutions for Efficient Inference,
NeurIPS 2019 (arXiv 1904.04971). Each expert is initialised as a layer of its own (not the stacked tensor as one).
The router's initialisation is open in the paper: ours is a linear layer's, with zero bias, so routing starts near 1/2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pocketcnn import kernels
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._method import Method, Site, conv_sites
from pocketcnn.numerics.dynamic_conv import Pair


@dataclass(frozen=True)
class CondConvOptions:
    """How many kernels are mixed."""

    num_experts: int = 4
    """How many kernels each layer stores and mixes for every image."""

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")


class CondConv2d(AbstractConv2d):
    """A convolution with one kernel per image, mixed from experts; takes `nn.Conv2d`'s arguments.

    Args:
        in_channels: as in `nn.Conv2d`; so are the arguments up to `dtype`.
        out_channels: as in `nn.Conv2d`.
        kernel_size: as in `nn.Conv2d`.
        stride: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`.
        dilation: as in `nn.Conv2d`.
        groups: as in `nn.Conv2d`.
        bias: whether each expert has a bias, mixed like its kernel.
        padding_mode: as in `nn.Conv2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.
        num_experts: how many kernels are stored.
    Raises:
        ValueError: an argument out of range.
    Cost: that of the convolution, and num_experts * (in_channels + kernel numbers) multiply-adds an image.
    """

    condensed_by = "condconv"
    why_not_dense = "its kernel is mixed anew for every image"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_experts: int = CondConvOptions.num_experts,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.num_experts = CondConvOptions(num_experts).num_experts
        # One row an expert: a five-dimensional parameter would break `model.to(memory_format=torch.channels_last)`.
        numbers = torch.Size(self.weight_shape).numel()
        self.experts = nn.Parameter(torch.empty(num_experts, numbers, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_experts, out_channels, device=device, dtype=dtype)) if bias else None
        self.router = nn.Linear(in_channels, num_experts, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert as a Kaiming fan-out layer of its own, the router as a linear layer; biases 0."""
        nn.init.normal_(self.experts, std=(2 / fan_out(self.weight_shape, self.groups)) ** 0.5)
        self.router.reset_parameters()
        nn.init.zeros_(self.router.bias)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def routing_weights(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_experts"]:
        """How much of each expert each image takes, in (0, 1)."""
        return self.router(x.mean(dim=(2, 3))).sigmoid()

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """The kernel of each image, [batch, out_channels, in_channels // groups, kernel_height, kernel_width].

        Raises:
            ValueError: no `x`: without an image there is no kernel.
        """
        if x is None:
            raise ValueError(f"dense_weight needs x: {self.why_not_dense}")
        return (self.routing_weights(x) @ self.experts).unflatten(1, self.weight_shape)

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """The experts and the router."""
        return [self.experts, *self.router.parameters()]

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        routing_weights = self.routing_weights(x)
        x, padding = self.pad(x)
        return kernels.condconv2d(
            x,
            routing_weights,
            self.experts.unflatten(1, self.weight_shape),
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_experts={self.num_experts}"


def sites(model: nn.Module, options: CondConvOptions) -> list[Site]:
    """Every convolution; stem and classifier are left alone by default."""
    return conv_sites(model, obstacle=lambda conv: "")


def build(sites: Sequence[Site], options: CondConvOptions) -> dict[str, nn.Module]:
    """A layer of experts for each site."""
    return {site.name: CondConv2d(**conv_arguments(site.module), num_experts=options.num_experts) for site in sites}


METHOD = Method(
    name="condconv",
    summary="one kernel per image: a router mixes a few stored experts",
    source="Yang et al., CondConv, NeurIPS 2019, arXiv 1904.04971",
    options=CondConvOptions,
    sites=sites,
    build=build,
)
