"""Recurrent Parameter Generators: all layers read their kernels off one short ring of shared numbers.

A seed gives every number of every kernel a place on the ring and a sign; only the ring is stored and trained, and the
file needs the seed but no index. Each layer scales what it reads to its own Kaiming fan-out variance.

Source: Wang, Chen, Yu, Cheung, LeCun: Compact and Optimal Deep Learning with Recurrent Parameter Generators,
WACV 2023 (arXiv 2107.07110). We differ from the authors' code in that any ring size works, places and signs are
rebuilt from one seed instead of being stored, and batch norm, stem and classifier are never on the ring.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._method import Method, Site, conv_sites
from pocketcnn.numerics.dynamic_conv import Pair
from pocketcnn.numerics.ring_index import SCHEMES


@dataclass(frozen=True)
class RingOptions:
    """How long the ring is and how it is read."""

    size: int | float = 0.25
    """Length of the ring: an integer, or a fraction in (0, 1] of the numbers replaced."""
    seed: int = 0
    """Rebuilds the place and the sign of every number; stored in the model file."""
    scheme: str = "random"
    """How places are assigned: "random" shuffles even coverage and flips fair coins for signs."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool):
            raise ValueError(f"size is a fraction or a length, not {self.size}")
        if isinstance(self.size, float) and not 0 < self.size <= 1:
            raise ValueError(f"size as a fraction must lie in (0, 1], not {self.size}; an integer is the ring's length")
        if self.size < 1 and not isinstance(self.size, float):
            raise ValueError(f"size as a length must be at least 1, not {self.size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64), not {self.seed}")
        if self.scheme not in SCHEMES:
            raise ValueError(f"no ring scheme {self.scheme!r}; known: {', '.join(SCHEMES)}")


class ParameterRing(nn.Module):
    """The shared numbers, and for each layer where and how it reads them.

    The ring is drawn with the mean variance of its layers (weighted by their numbers), so that with as many stored
    numbers as used ones it starts, and takes steps, like the plain net.

    Args:
        shapes: the kernel shapes of the layers, in order: each layer is a slot, numbered from 0.
        size: length of the ring, an integer or a fraction in (0, 1] of all the layers' numbers.
        seed: rebuilds places and signs.
        scheme: see `pocketcnn.numerics.ring_indices`.
        groups: the number of groups of each layer's convolution; 1 for all when not given.
        device: where the parameters live; `dtype` is their type.
        dtype: of the parameters.
    Raises:
        ValueError: no shapes, or an option out of range.
    """

    indices: Tensor
    signs: Tensor

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        size: int | float = RingOptions.size,
        *,
        seed: int = 0,
        scheme: str = "random",
        groups: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = RingOptions(size, seed, scheme)  # checks them
        if not shapes:
            raise ValueError("a ring needs the shape of at least one layer")
        self.shapes = [tuple(shape) for shape in shapes]
        self.seed, self.scheme = options.seed, options.scheme
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        total = sum(self.sizes)
        length = max(1, round(size * total)) if isinstance(size, float) else size
        variances = [
            2 / fan_out(shape, g) for shape, g in zip(self.shapes, groups or [1] * len(self.shapes), strict=True)
        ]
        self.std = (sum(n * v for n, v in zip(self.sizes, variances, strict=True)) / total) ** 0.5
        self.scales = [v**0.5 / self.std for v in variances]
        self.values = nn.Parameter(torch.empty(length, device=device, dtype=dtype))
        # Rebuilt from the seed, hence never in a file; int32 halves the memory and the reading time of int64.
        self.register_buffer("indices", torch.empty(total, device=device, dtype=torch.int32), persistent=False)
        self.register_buffer("signs", torch.empty(total, device=device, dtype=torch.int8), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the ring anew from torch's random numbers and rebuilds places and signs from the seed."""
        nn.init.normal_(self.values, std=self.std)
        if not self.indices.is_meta:
            indices, signs = kernels.ring_indices(self.sizes, len(self.values), seed=self.seed, scheme=self.scheme)
            self.indices.copy_(indices)
            self.signs.copy_(signs)

    def read(self, slot: int) -> Tensor:
        """The kernel of the layer in that slot."""
        start = sum(self.sizes[:slot])
        window = slice(start, start + self.sizes[slot])
        flat = kernels.ring_kernel(self.values, self.indices[window], self.signs[window], self.scales[slot])
        return flat.view(self.shapes[slot])

    def extra_repr(self) -> str:
        return f"{len(self.values)} numbers read {sum(self.sizes)} times, seed={self.seed}, scheme={self.scheme!r}"


class RingConv2d(AbstractConv2d):
    """A convolution whose kernel is read off a ring; takes `nn.Conv2d`'s arguments.

    Args:
        in_channels: as in `nn.Conv2d`; so are the arguments up to `dtype`.
        out_channels: as in `nn.Conv2d`.
        kernel_size: as in `nn.Conv2d`.
        stride: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`.
        dilation: as in `nn.Conv2d`.
        groups: as in `nn.Conv2d`.
        bias: as in `nn.Conv2d`; the bias is the layer's own and starts at 0.
        padding_mode: as in `nn.Conv2d`.
        device: as in `nn.Conv2d`.
        dtype: as in `nn.Conv2d`.
        ring: the ring to read; without one the layer makes its own of `size` and `seed`.
        slot: which of the ring's readers this layer is.
        size: length of the layer's own ring, an integer or a fraction in (0, 1] of the kernel's numbers.
        seed: of the layer's own ring.
    Raises:
        ValueError: an argument out of range, or a slot whose shape is not that of the kernel.
    Cost: that of the convolution, and one gather of the kernel's numbers.
    """

    condensed_by = "ring"

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
        ring: ParameterRing | None = None,
        slot: int = 0,
        size: int | float = RingOptions.size,
        seed: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if ring is None:
            ring = ParameterRing([self.weight_shape], size, seed=seed, groups=[groups], device=device, dtype=dtype)
        if not 0 <= slot < len(ring.shapes) or ring.shapes[slot] != self.weight_shape:
            held = ring.shapes[slot] if 0 <= slot < len(ring.shapes) else f"none of its {len(ring.shapes)} slots"
            raise ValueError(f"slot {slot} of the ring holds {held}, this layer reads {self.weight_shape}")
        self.ring, self.slot = ring, slot
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    def reset_parameters(self) -> None:
        """Draws the ring anew, for all of its readers, and sets the bias to 0."""
        self.ring.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """The kernel, [out_channels, in_channels // groups, kernel_height, kernel_width]; the same for every `x`."""
        return self.ring.read(self.slot)

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """The ring."""
        return [self.ring.values]

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        x, padding = self.pad(x)
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, slot={self.slot}"


def sites(model: nn.Module, options: RingOptions) -> list[Site]:
    """Every convolution, 1x1 shortcuts included; stem and classifier are left alone by default."""
    return conv_sites(model, obstacle=lambda conv: "")


def build(sites: Sequence[Site], options: RingOptions) -> dict[str, nn.Module]:
    """One ring for all the sites, and a layer that reads it for each."""
    convs = [site.module for site in sites]
    kinds = {(conv.weight.device, conv.weight.dtype) for conv in convs}
    if len(kinds) > 1:
        raise ValueError(f"one ring cannot serve layers of different devices or dtypes: {sorted(map(str, kinds))}")
    ring = ParameterRing(
        [tuple(conv.weight.shape) for conv in convs],
        options.size,
        seed=options.seed,
        scheme=options.scheme,
        groups=[conv.groups for conv in convs],
        device=convs[0].weight.device,
        dtype=convs[0].weight.dtype,
    )
    return {
        site.name: RingConv2d(**conv_arguments(conv), ring=ring, slot=slot)
        for slot, (site, conv) in enumerate(zip(sites, convs, strict=True))
    }


METHOD = Method(
    name="ring",
    summary="all kernels are read off one short shared ring by seeded places and signs",
    source="Wang et al., Recurrent Parameter Generators, WACV 2023, arXiv 2107.07110",
    options=RingOptions,
    sites=sites,
    build=build,
)
