"""Layers of torch whose weight is read off a ring: linear ones, and convolutions of other dimensions or transposed.

They are torch's own layers in all but the weight, which is no parameter: reading `layer.weight` reads the ring.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.methods._leaf import AbstractLeaf

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_TRANSPOSED = ("output_padding",)


class AbstractReading(AbstractLeaf):
    """A layer that reads its weight off a ring; a base beside one of torch's layers, whose arguments it takes.

    Args:
        *arguments: of torch's layer.
        ring: what is read.
        slot: number of this layer among the ring's readers.
        bias: as in torch's layer; the bias is the layer's own and starts at 0.
        device: of the bias; so is `dtype`.
        **options: of torch's layer.
    """

    condensed_by = "ring"
    why_not_dense = ""
    bias: Any
    ring: Any
    weight: Any

    def __init__(
        self,
        *arguments: Any,
        ring: nn.Module,
        slot: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, bias=bias, device="meta", dtype=dtype, **options)
        outputs = None if self.bias is None else self.bias.shape
        del self._parameters["weight"]
        self.ring, self.slot = ring, slot
        self.bias = None if outputs is None else nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Redraws the ring, for all of its readers, and sets the bias to 0."""
        if "ring" in self._modules:  # torch's constructor calls this before there is one
            self.ring.reset_parameters()
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    @property  # type: ignore[no-redef]
    def weight(self) -> Any:
        """The weight; writing to it has no effect."""
        return self.dense_weight()

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """The weight of torch's layer; the same for every `x`."""
        return self.ring.read(self.slot)

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the ring and, if the layers have them, their factors."""
        return list(self.ring.parameters())

    def dense(self, entropy: float | None = None) -> nn.Module:
        """Builds torch's layer with equal outputs; `entropy` makes no difference."""
        weight = self.dense_weight().detach()
        plain = next(kind for kind, own in READING.items() if own is type(self))
        layer: Any = plain(
            **arguments_of(self, plain), bias=self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            layer.weight.copy_(weight)
            if self.bias is not None:
                layer.bias.copy_(self.bias)
                layer.bias.requires_grad_(self.bias.requires_grad)
        layer.weight.requires_grad_(any(p.requires_grad for p in self.generator_parameters()))
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, slot={self.slot}"


class RingLinear(AbstractReading, nn.Linear):
    """An `nn.Linear` that reads its weight off a ring."""


class RingConv1d(AbstractReading, nn.Conv1d):
    """An `nn.Conv1d` that reads its weight off a ring."""


class RingConv3d(AbstractReading, nn.Conv3d):
    """An `nn.Conv3d` that reads its weight off a ring."""


class RingConvTranspose1d(AbstractReading, nn.ConvTranspose1d):
    """An `nn.ConvTranspose1d` that reads its weight off a ring."""


class RingConvTranspose2d(AbstractReading, nn.ConvTranspose2d):
    """An `nn.ConvTranspose2d` that reads its weight off a ring."""


class RingConvTranspose3d(AbstractReading, nn.ConvTranspose3d):
    """An `nn.ConvTranspose3d` that reads its weight off a ring."""


READING: dict[type[nn.Module], type[AbstractReading]] = {
    nn.Linear: RingLinear,
    nn.Conv1d: RingConv1d,
    nn.Conv3d: RingConv3d,
    nn.ConvTranspose1d: RingConvTranspose1d,
    nn.ConvTranspose2d: RingConvTranspose2d,
    nn.ConvTranspose3d: RingConvTranspose3d,
}
"""The layers of torch that may read a ring, and what takes their places; `nn.Conv2d` has a class of its own."""


def arguments_of(layer: Any, kind: type[nn.Module]) -> dict[str, Any]:
    """Arguments that would build a layer of torch like this one, without bias, device and dtype."""
    if kind is nn.Linear:
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = (*_CONV, *(_TRANSPOSED if "Transpose" in kind.__name__ else ()))
    return {name: getattr(layer, name) for name in names}


def fan_out_of(layer: Any) -> int:
    """Number of outputs that each input value of a layer reaches, if it moves by one pixel at a time."""
    shape = tuple(layer.weight.shape)
    outputs = shape[1] if "Transpose" in type(layer).__name__ else shape[0] // getattr(layer, "groups", 1)
    return outputs * torch.Size(shape[2:]).numel()
