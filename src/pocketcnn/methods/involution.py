"""Involution: every pixel generates its own small kernel, shared by the channels of a group.

Two 1x1 convolutions turn a pixel's channels into a K x K kernel for each group; the kernel weighs the pixel's
neighbourhood. Channels are never mixed, so a net must keep ordinary convolutions in between.

Source: Li et al., Involution: Inverting the Inherence of Convolution for Visual Recognition, CVPR 2021
(arXiv 2103.06255). The paper assumes 'same' padding; here any geometry works: the kernel of an output pixel is generated
from the pixels its stride covers, counted from the centre of its window. An involution is quadratic in its input, so a
deep net of them overflows in evaluation mode until batch norm has seen images.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.methods._conv import LARGEST_KERNEL, AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._method import Method, Site
from pocketcnn.methods._sites import conv_sites, sites_by_pattern
from pocketcnn.numerics._shapes import Pair, divisors_of, pair

Layers = Literal["alternate", "all"]


@dataclass(frozen=True)
class InvolutionOptions:
    """Extent of the kernels, and their generator."""

    kernel_size: int | dict[str, int] | None = None
    """Extent of the per-pixel kernels, odd, for all or by dotted-name pattern; None keeps that of the convolution."""
    layers: Layers = "alternate"
    """Layers replaced: "alternate", every second of convolutions in a row, so that one of two mixes channels; or "all"."""
    group_channels: int = 16
    """Number of channels that share a kernel."""
    num_groups: int | None = None
    """Number of groups, whatever the number of channels; overrides group_channels."""
    reduction: int = 4
    """Divides the layer's channels to give the generator's hidden channels."""
    generator_bias: bool = True
    """Give the generator's second convolution a bias."""

    def __post_init__(self) -> None:
        sizes = self.kernel_size.values() if isinstance(self.kernel_size, dict) else [self.kernel_size]
        if wrong := [size for size in sizes if size is not None and (size < 1 or size % 2 == 0)]:
            raise ValueError(f"kernel_size must be odd and positive, so that it has a centre, not {wrong[0]}")
        if wrong := [size for size in sizes if size is not None and size > LARGEST_KERNEL]:
            raise ValueError(f"kernel_size may be at most {LARGEST_KERNEL}, not {wrong[0]}")
        if self.layers not in get_args(Layers):
            raise ValueError(f"no layers {self.layers!r}; known: {', '.join(get_args(Layers))}")
        if min(self.group_channels, self.reduction) < 1 or (self.num_groups is not None and self.num_groups < 1):
            raise ValueError(
                "group_channels, num_groups and reduction must be at least 1, "
                f"got {self.group_channels}, {self.num_groups}, {self.reduction}"
            )


class Involution2d(AbstractConv2d):
    """A layer with one kernel per pixel and group of channels, generated from that pixel.

    Args:
        in_channels: channels of the input.
        out_channels: must equal `in_channels`.
        kernel_size: extent of the kernels, odd, in pixels; one number or (height, width).
        stride: as in `nn.Conv2d`; the generator sees the average over each stride's pixels.
        padding: as in `nn.Conv2d`.
        dilation: as in `nn.Conv2d`.
        bias: adds a trained value per channel to the output.
        group_channels: number of channels that share a kernel; must divide `in_channels`.
        reduction: the generator's hidden channels are `max(1, channels // reduction)`.
        generator_bias: gives the generator's second convolution a bias.
        padding_mode: as in `nn.Conv2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.
    Raises:
        ValueError: channels that differ or do not divide into groups (the message names those that fit), or an even kernel.
    Cost: channels * kernel area multiply-adds per output pixel, and those of the two 1x1 convolutions.
    """

    condensed_by = "involution"
    why_not_dense = "it has a kernel of its own for every pixel"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = False,
        *,
        group_channels: int = InvolutionOptions.group_channels,
        reduction: int = InvolutionOptions.reduction,
        generator_bias: bool = InvolutionOptions.generator_bias,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode=padding_mode)
        InvolutionOptions(group_channels=group_channels, reduction=reduction)  # checks them
        if obstacle := _obstacle(in_channels, out_channels, group_channels):
            raise ValueError(obstacle)
        if self.kernel_size[0] % 2 == 0 or self.kernel_size[1] % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that it has a centre, not {self.kernel_size}")
        self.group_channels, self.reduction = group_channels, reduction
        hidden, taps = max(1, in_channels // reduction), self.kernel_size[0] * self.kernel_size[1]
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.generator = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False, **where),
            nn.BatchNorm2d(hidden, **where),
            nn.ReLU(),
            nn.Conv2d(hidden, taps * (in_channels // group_channels), 1, bias=generator_bias, **where),
        )
        self.bias = nn.Parameter(torch.empty(out_channels, **where)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both generator convolutions by Kaiming fan-out, as in the authors' nets; biases are 0."""
        reduce, norm, _, span = self.generator
        for conv in (reduce, span):
            assert isinstance(conv, nn.Conv2d)
            nn.init.normal_(conv.weight, std=(2 / fan_out(tuple(conv.weight.shape), 1)) ** 0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """Generates the kernel of each output pixel, [batch, groups, kernel_height * kernel_width, out_height, out_width].

        Raises:
            ValueError: no `x`: without pixels there are no kernels.
        """
        if x is None:
            raise ValueError(f"dense_weight needs x: {self.why_not_dense}")
        # Cropping (zero-padding, where negative) by the kernel's reach less the padding leaves the pixels at which
        # windows are centred: n of them on an axis make ceil(n / stride) outputs, as the pooling does too.
        reach = [d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        top, left = self._before[0] - reach[0], self._before[1] - reach[1]
        bottom, right = self._after[0] - reach[0], self._after[1] - reach[1]
        if x.shape[2] + top + bottom < 1 or x.shape[3] + left + right < 1:
            raise ValueError(
                f"a {self.kernel_size} kernel does not fit in {tuple(x.shape[2:])} pixels, padding included"
            )
        if (top, bottom, left, right) != (0, 0, 0, 0):
            x = F.pad(x, (left, right, top, bottom))
        if self.stride != (1, 1):
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.generator(x).unflatten(1, (self.in_channels // self.group_channels, -1))

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the parameters of the generator."""
        return self.generator.parameters()

    def extra_macs(self, x: Tensor, y: Tensor) -> dict[str, int]:
        """Counts the multiply-adds of the weighted sum, which operator counters do not see."""
        return {"involution": y.numel() * self.kernel_size[0] * self.kernel_size[1]}

    def filtered(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Filters every pixel's neighbourhood with the kernel that the pixel makes."""
        weight = self.dense_weight(x)
        x, padding = self.pad(x)
        y = kernels.involution2d(
            x, weight, kernel_size=self.kernel_size, stride=self.stride, padding=padding, dilation=self.dilation
        )
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_channels={self.group_channels}, reduction={self.reduction}"


def _obstacle(in_channels: int, out_channels: int, group_channels: int) -> str:
    """Says why an involution cannot have these channels; empty if it can."""
    if in_channels != out_channels:
        return f"involution keeps the channel count, but this layer has {in_channels} in and {out_channels} out"
    if in_channels % group_channels:
        fitting = divisors_of(in_channels)
        return f"{in_channels} channels do not divide into groups of {group_channels}; group sizes that fit: {fitting}"
    return ""


def _group_channels(channels: int, options: InvolutionOptions) -> int:
    return options.group_channels if options.num_groups is None else max(1, channels // options.num_groups)


def sites(model: nn.Module, options: InvolutionOptions) -> list[Site]:
    """Lists convolutions larger than 1x1 that keep the channel count; by default never two in a row, from the last one on.

    An involution mixes no channels, so an ordinary convolution must stand before it. The second convolution of a basic
    block is replaced, and the 3x3 one of a bottleneck (as in the comparison report and the paper). A site's detail is the
    kernel_size asked for, None for that of the convolution.
    """

    def obstacle(conv: nn.Conv2d) -> str:
        if conv.kernel_size == (1, 1):
            return "involution gathers neighbours, a 1x1 convolution has none"
        if options.num_groups and conv.in_channels == conv.out_channels and conv.in_channels % options.num_groups:
            fitting = divisors_of(conv.in_channels)
            return f"{conv.in_channels} channels do not divide into {options.num_groups} groups; {fitting} would fit"
        return _obstacle(conv.in_channels, conv.out_channels, _group_channels(conv.in_channels, options))

    found = conv_sites(model, obstacle)
    asked = options.kernel_size
    pattern_of = sites_by_pattern(found, asked, "kernel_size") if isinstance(asked, dict) else {}
    for number, site in enumerate(found):
        size = asked.get(pattern_of.get(site.name, "")) if isinstance(asked, dict) else asked
        reason = _misfit(site.module, size) if site.possible else ""
        found[number] = dataclasses.replace(
            site, detail=size, reason=reason or site.reason, possible=site.possible and not reason
        )
    next_is_involution = False
    for i in reversed(range(len(found))):
        site = found[i]
        if not site.reason and next_is_involution and options.layers == "alternate":
            found[i] = dataclasses.replace(
                site, reason="the next layer becomes an involution; one of two mixes channels"
            )
        next_is_involution = not found[i].reason or isinstance(site.module, Involution2d)
    return found


def _misfit(conv: nn.Conv2d, kernel_size: int | None) -> str:
    """Says why an involution of this extent cannot replace a convolution; empty if it can."""
    if kernel_size is None and any(k % 2 == 0 for k in conv.kernel_size):
        return f"involution needs an odd kernel, this one is {conv.kernel_size}; kernel_size= sets another"
    # Windows must be centred on the pixels of the image: the padding is half the kernel's reach.
    reach = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if kernel_size is not None and conv.padding not in (reach, "same"):
        return f"kernel_size={kernel_size} needs a convolution with 'same' padding, this one has {conv.padding}"
    return ""


def build(sites: Sequence[Site], options: InvolutionOptions) -> dict[str, nn.Module]:
    """Builds an involution for each site; a new kernel_size changes the padding too and so keeps the output's size."""
    built: dict[str, nn.Module] = {}
    for site in sites:
        arguments = conv_arguments(site.module)
        del arguments["groups"]
        if site.detail is not None:
            arguments["kernel_size"] = site.detail
            if not isinstance(arguments["padding"], str):
                arguments["padding"] = tuple(d * (site.detail - 1) // 2 for d in pair(site.module.dilation))
        built[site.name] = Involution2d(
            **arguments,
            group_channels=_group_channels(site.module.in_channels, options),
            reduction=options.reduction,
            generator_bias=options.generator_bias,
        )
    return built


METHOD = Method(
    name="involution",
    summary="one kernel per pixel, generated from that pixel and shared by groups of channels",
    source="Li et al., Involution, CVPR 2021, arXiv 2103.06255",
    options=InvolutionOptions,
    sites=sites,
    build=build,
    searched={"kernel_size": (3, 5, 7), "group_channels": (2, 4, 8, 16), "reduction": (2, 4, 8)},
)
