"""The shell of all layers that stand for an `nn.Conv2d`: arguments, their checks, and padding."""

import abc
import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.methods._leaf import AbstractLeaf, proxy_in
from pocketcnn.numerics._shapes import Pair, divisors_of, is_recorded, pair

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

LARGEST_KERNEL = 999  # pixels, of an option that sets a kernel's extent: far beyond any image's use


class AbstractConv2d(AbstractLeaf, abc.ABC):
    """A layer with `nn.Conv2d`'s arguments and input that makes its kernel instead of storing it.

    It offers what `MakesKernel`, `Condensed` and `HasDense` of `pocketcnn.support.protocols` ask for.
    """

    condensed_by: str  # the method's name
    why_not_dense: str = ""  # why no ordinary convolution equals the layer; empty where one does
    bias: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, groups) < 1:
            raise ValueError(f"channels and groups must be at least 1, got {in_channels}, {out_channels}, {groups}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{in_channels} and {out_channels} channels do not both divide into {groups} groups; "
                f"{divisors_of(math.gcd(in_channels, out_channels))} would fit"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"no padding mode {padding_mode!r}; known: {', '.join(PADDING_MODES)}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        self.padding: tuple[int, int] | str = padding if isinstance(padding, str) else pair(padding)
        self.padding_mode = padding_mode
        if min(*self.kernel_size, *self.stride, *self.dilation) < 1:
            raise ValueError(
                f"kernel_size, stride and dilation must be at least 1, got {kernel_size}, {stride}, {dilation}"
            )
        self._before, self._after = self._sides()

    def _sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding before and after, each (height, width)."""
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ValueError(f"padding must be numbers, 'same' or 'valid', not {self.padding!r}")
            if self.padding == "valid":
                return (0, 0), (0, 0)
            if self.stride != (1, 1):
                raise ValueError(f"padding 'same' needs stride 1, got {self.stride}")
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (reach[0] // 2, reach[1] // 2), (reach[0] - reach[0] // 2, reach[1] - reach[1] // 2)
        if min(self.padding) < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")
        return self.padding, self.padding

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        """Filters a batch of images, or one image without a batch, as `nn.Conv2d` does.

        Args:
            x: [batch, in_channels, height, width], or [in_channels, height, width].
            *given: passed on to `filtered`.
        Raises:
            ValueError: an input with other axes or channels, or without pixels.
            TypeError: an input that is no tensor.
        """
        check_images(x, self.in_channels, alone=True)
        return self.filtered(x, *given) if x.dim() == 4 else self.filtered(x[None], *given)[0]

    def filtered(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Filters a batch of images with the layer's kernel."""
        x, padding = self.pad(x)
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)

    def pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pads the input where `F.conv2d` could not; returns it and the zero padding left for `F.conv2d`, (height, width)."""
        if self.padding_mode == "zeros" and self._before == self._after:
            return x, self._before
        sides = (self._before[1], self._after[1], self._before[0], self._after[0])
        return F.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode), (0, 0)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Kernel shape of the convolution that the layer stands for."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @abc.abstractmethod
    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """Makes the ordinary kernel that the layer stands for; for `x`, if the kernel depends on it."""

    def dense(self, entropy: float | None = None) -> nn.Conv2d:
        """Builds the ordinary convolution with equal outputs; `entropy` makes no difference."""
        weight, bias = self.dense_weight().detach(), self.bias
        mode: Any = self.padding_mode
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation, self.groups,
            bias is not None, mode, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.copy_(weight)
            if conv.bias is not None and bias is not None:
                conv.bias.copy_(bias)
        conv.weight.requires_grad_(any(p.requires_grad for p in self.generator_parameters()))
        if conv.bias is not None and bias is not None:
            conv.bias.requires_grad_(bias.requires_grad)
        return conv.train(self.training)

    @abc.abstractmethod
    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the parameters that exist only to make the kernel."""

    def extra_repr(self) -> str:
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros")):
            if getattr(self, name) != default:
                shown.append(f"{name}={getattr(self, name)}")
        if getattr(self, "bias", None) is None:
            shown.append("bias=False")
        return ", ".join(shown)


def check_images(x: Any, channels: int, *, alone: bool = False) -> None:
    """Checks that a layer's input is a batch of images with so many channels or, with `alone`, one image without a batch.

    Raises:
        ValueError: other axes or channels, or no pixels.
        TypeError: no tensor; or a symbolic trace of the layer alone.
    """
    if proxy_in(x) is not None:
        raise TypeError(
            "torch.fx records a call of this layer in a net, but cannot trace it alone; trace nn.Sequential(layer)"
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a tensor of images, not a {type(x).__name__}")
    axes = x.dim() == 4 or (alone and x.dim() == 3)
    if axes and (is_recorded() or (x.shape[-3] == channels and 0 not in x.shape[-2:])):
        return
    one = " or one image without the batch" if alone else ""
    raise ValueError(
        f"this layer is for images of {channels} channels, the input is {list(x.shape)}; it takes [batch, {channels}, height, "
        f"width]{one}, with at least one pixel"
    )


def fan_out(weight_shape: tuple[int, ...], groups: int) -> int:
    """Number of outputs that each input value of a convolution reaches: out_channels / groups * kernel area."""
    return weight_shape[0] // groups * math.prod(weight_shape[2:])


def conv_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """Arguments that would build a convolution like `conv`, with bias, device and dtype."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {name: getattr(conv, name) for name in names}
    return arguments | {
        "bias": conv.bias is not None,
        "device": conv.weight.device,
        "dtype": conv.weight.dtype,
    }
