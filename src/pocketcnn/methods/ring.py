"""Recurrent Parameter Generators: all layers read their kernels off one short ring of shared parameters.

A seed gives every weight of every kernel a place on the ring and a sign. Only the ring is stored and trained; the file
holds the seed and no index. Each layer scales what it reads to its own Kaiming fan-out variance. A net can have one ring,
one for each stage or block, or rings for layers by name; and sub-networks that repeat can each read all of a ring.

Source: Wang, Chen, Yu, Cheung, LeCun: Compact and Optimal Deep Learning with Recurrent Parameter Generators,
WACV 2023 (arXiv 2107.07110). We differ from the authors' code in that any ring size works, places and signs are
rebuilt from one seed instead of being stored, and batch norm, stem and classifier are never on the ring.
"""

import dataclasses
import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn import kernels
from pocketcnn.methods._blocks import block_of
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._method import Method, Range, Site
from pocketcnn.methods._reading import READING, AbstractReading, arguments_of, fan_out_of
from pocketcnn.methods._shared import AbstractConstants, AbstractShared, AbstractWhole
from pocketcnn.methods._sites import conv_sites, matches, sites_by_pattern
from pocketcnn.numerics._shapes import Pair, accumulation_dtype
from pocketcnn.numerics.ring_fit import fit_ring, fit_windows
from pocketcnn.numerics.ring_index import (
    CODED,
    SCHEMES,
    WINDOW,
    affine_constants,
    affine_indices,
    apart_in,
    code_count,
    codes_of_numbers,
    lengths,
    longest,
    numbers_of_codes,
    window_codes,
    window_indices,
)

LEVELS = ("net", "stage", "block")
_SEEDLESS = ("identity", *CODED)  # schemes that are read round and round, or by codes that the file stores
_WIDEST = 64  # neighbours in a window; few kernels have so many weights alike
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RingOptions:
    """Number of rings, their lengths, and the way they are read."""

    size: int | float | dict[str, int | float] = 0.25
    """Length: an integer for all rings together, a fraction in (0, 1] of the weights replaced, or either by ring."""
    seed: int = 0
    """Rebuilds the place and the sign of every weight; stored in the model file."""
    scheme: str = "random"
    """Assignment of places and signs: "random" (shuffled), "block" (by filter), "affine" (arithmetic), "identity", or
    "windows" (some neighbours at a time, from stored places that a fit chooses), or "codebook" (windows that do not overlap)."""
    window: int = WINDOW
    """For "windows" and "codebook": number of neighbours, each of which two bytes place; 3 for kernels of three weights in one dimension."""
    level: str | dict[str, str] = "net"
    """One ring for the "net", each "stage" or each "block"; or ring names by dotted-name pattern of the layers."""
    subnets: str = ""
    """Pattern of modules that are repeated sub-networks: each reads the ring by places and signs of its own."""
    gain: bool = False
    """Give each layer a factor of its own, stored and trained; initialize="fit" needs it and turns it on."""

    def __post_init__(self) -> None:
        if self.size == {}:
            raise ValueError("size names no ring at all")
        for size in self.size.values() if isinstance(self.size, dict) else [self.size]:
            if isinstance(size, bool):
                raise ValueError(f"size is a fraction or a length, not {size}")
            if isinstance(size, float) and not 0 < size <= 1:
                raise ValueError(f"size as a fraction must lie in (0, 1], not {size}; an integer is the ring's length")
            if size < 1 and not isinstance(size, float):
                raise ValueError(f"size as a length must be at least 1, not {size}")
            if size >= 2**31:  # places have 32 bits
                raise ValueError(f"size as a length must be below 2**31, not {size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64), not {self.seed}")
        if self.scheme not in SCHEMES:
            raise ValueError(f"no ring scheme {self.scheme!r}; known: {', '.join(SCHEMES)}")
        if not 1 <= self.window <= _WIDEST:
            raise ValueError(f"window is a number of neighbours from 1 to {_WIDEST}, not {self.window}")
        if isinstance(self.level, str) and self.level not in LEVELS:
            raise ValueError(f"no level {self.level!r}; known: {', '.join(LEVELS)}, or rings by pattern")
        if not self.level:
            raise ValueError("level names no ring at all")


class ParameterRing(AbstractShared, AbstractConstants, AbstractWhole):
    """The shared parameters, and for each layer the places and signs of its weights on the ring.

    Places and signs are no buffers: averages, casts and `to_empty` leave them as they are. The codes of windows, which a fit
    sets, are a buffer of whole numbers.

    The ring is drawn with the mean variance of its layers, each weighted by its number of weights. So a ring as long as
    all its layers together starts, and takes steps, like the plain net.

    Args:
        shapes: the kernel shapes of the layers, in order: each layer is a slot, numbered from 0.
        size: length of the ring, an integer or a fraction in (0, 1] of all the layers' weights.
        seed: rebuilds places and signs.
        scheme: see `pocketcnn.numerics.ring_indices`.
        window: number of neighbours of the schemes `"windows"` and `"codebook"`.
        groups: the number of groups of each layer's convolution; 1 for all when not given.
        fans: the number of outputs that each input value of a layer reaches; that of convolutions when not given.
        subnets: the number of the sub-network that each layer is part of; 0 for all when not given. The list of places
            starts anew in each sub-network; so parts of a ring longer than every sub-network may never be read.
        gain: gives each layer a factor of its own, stored and trained.
        device: where the parameters live; `dtype` is their type.
        dtype: of the parameters.
    Raises:
        ValueError: no shapes, or an option out of range.
    """

    stored_weights = ("values",)  # one axis, and weights all the same
    kernels_read_from: Mapping[str, float] = {"values": 1.0}
    kernels_scaled_by = ("gains",)
    indices: Tensor
    signs: Tensor
    codes: Tensor

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        size: int | float = 0.25,
        *,
        seed: int = 0,
        scheme: str = "random",
        window: int = WINDOW,
        groups: Sequence[int] | None = None,
        fans: Sequence[int] | None = None,
        subnets: Sequence[int] | None = None,
        gain: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = RingOptions(size, seed, scheme, window)  # checks them
        if not shapes:
            raise ValueError("a ring needs the shape of at least one layer")
        self.shapes = [tuple(shape) for shape in shapes]
        self.seed, self.scheme, self.span = options.seed, options.scheme, options.window
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.subnets = list(subnets or [0] * len(shapes))
        if len(self.subnets) != len(shapes):
            raise ValueError(f"{len(shapes)} layers need as many sub-network numbers, got {len(self.subnets)}")
        total = sum(self.sizes)
        length = max(1, round(size * total)) if isinstance(size, float) else size
        most = max(sum(n for n, s in zip(self.sizes, self.subnets, strict=True) if s == k) for k in set(self.subnets))
        if scheme in CODED and length > longest(window):
            raise ValueError(
                f"codes of windows reach {longest(window):,} parameters of a ring, this one would have {length:,}; take a smaller size, "
                'or level="stage" for several rings'
            )
        if len(set(self.subnets)) > 1 and length > most:
            _log.warning("a ring of %d parameters, but no sub-network reads more than %d of them", length, most)
        if fans is None:
            fans = [fan_out(shape, g) for shape, g in zip(self.shapes, groups or [1] * len(shapes), strict=True)]
        variances = [2 / fan for fan in fans]
        self.std = (sum(n * v for n, v in zip(self.sizes, variances, strict=True)) / total) ** 0.5
        self.scales = [v**0.5 / self.std for v in variances]
        self.values = nn.Parameter(torch.empty(length, device=device, dtype=dtype))
        self.gains = nn.Parameter(torch.empty(len(shapes), device=device, dtype=dtype)) if gain else None
        if self.scheme in CODED:
            count = sum(code_count(size, window) for size in self.sizes)
            self.register_buffer("codes", torch.empty(count, 2, device=device, dtype=torch.float32))
        else:
            # Rebuilt from the seed, hence never in a file; int32 halves the memory and the reading time of int64.
            self.constants = ("indices", "signs")
            self.indices = torch.empty(total, device="meta", dtype=torch.int32)
            self.signs = torch.empty(total, device="meta", dtype=torch.int8)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Redraws the ring from torch's random numbers and rebuilds places and signs from the seed."""
        nn.init.normal_(self.values, std=self.std)
        if self.gains is not None:
            nn.init.ones_(self.gains)
        if self.scheme in CODED and not self.codes.is_meta:
            with torch.device("cpu"):
                codes = self._drawn_codes()
            self.codes.copy_(codes)
        self.rebuild_constants()

    @property
    def stored_types(self) -> dict[str, torch.dtype]:  # type: ignore[override]
        """The codes of windows are bytes in a file."""
        return {"codes": torch.uint8} if self.scheme in CODED else {}

    @property
    def apart(self) -> int:
        """How far apart the places lie where windows may start."""
        return apart_in(self.scheme, self.span)

    @property
    def _starts(self) -> int:
        """How many places there are where windows may start."""
        return max(1, len(self.values) // self.apart)

    def limit_of(self, name: str) -> int | None:
        """Codes of windows stand for places and signs."""
        return 2 * self._starts if name == "codes" and self.scheme in CODED else None

    def numbers_of(self, name: str, stored: Tensor) -> Tensor:
        """Places and signs of codes."""
        return numbers_of_codes(stored, self._starts)

    def stored_of(self, name: str, numbers: Tensor) -> Tensor:
        """Codes of places and signs."""
        return codes_of_numbers(numbers, self._starts)

    def where(self) -> torch.device:
        """Device of the ring."""
        return self.values.device

    def make_constants(self) -> dict[str, Tensor]:
        """Makes places and signs from the seed."""
        made = {
            name: torch.empty(getattr(self, name).shape, dtype=getattr(self, name).dtype) for name in self.constants
        }
        for number in dict.fromkeys(self.subnets):
            slots = [slot for slot, subnet in enumerate(self.subnets) if subnet == number]
            sizes, seed = [self.sizes[slot] for slot in slots], self.seed_of(number)
            filter_sizes = [self.sizes[slot] // self.shapes[slot][0] for slot in slots]
            indices, signs = kernels.ring_indices(
                sizes, len(self.values), seed=seed, scheme=self.scheme, filter_sizes=filter_sizes
            )
            window = torch.cat([torch.arange(self.sizes[slot]) + sum(self.sizes[:slot]) for slot in slots])
            made["indices"][window] = indices.int()
            made["signs"][window] = signs.to(torch.int8)
        return made

    def _drawn_codes(self) -> Tensor:
        """Draws the codes of windows that a ring starts with, from the seed."""
        codes = torch.empty(self.codes.shape)
        for number in dict.fromkeys(self.subnets):
            slots = [slot for slot, subnet in enumerate(self.subnets) if subnet == number]
            sizes = [self.sizes[slot] for slot in slots]
            drawn = window_codes(sizes, seed=self.seed_of(number), window=self.span).split(
                [code_count(size, self.span) for size in sizes]
            )
            for slot, own in zip(slots, drawn, strict=True):
                codes[self.code_window(slot)] = own.float()
        return codes

    def seed_of(self, subnet: int) -> int:
        """Seed of the places and signs of a sub-network's layers."""
        return (self.seed + (subnet << 48)) % 2**64  # far from the seeds of other rings and other runs

    def window(self, slot: int) -> slice:
        """The part of `indices` and `signs` that belongs to the layer in that slot."""
        start = sum(self.sizes[:slot])
        return slice(start, start + self.sizes[slot])

    def code_window(self, slot: int) -> slice:
        """The part of `codes` that belongs to the layer in that slot."""
        start = sum(code_count(size, self.span) for size in self.sizes[:slot])
        return slice(start, start + code_count(self.sizes[slot], self.span))

    def places(self, slot: int) -> tuple[Tensor, Tensor]:
        """Places and signs of the kernel's weights for the layer in that slot, both flat."""
        self.settle()  # a replica or a swapped parameter may be on another device
        if self.values.is_meta:
            indices = torch.empty(self.sizes[slot], device="meta", dtype=torch.int32)
            return indices, torch.empty_like(indices, dtype=torch.int8)
        if self.scheme in CODED:
            codes = self.whole("codes")[self.code_window(slot)]
            return window_indices(codes, len(self.values), self.sizes[slot], self.span, self.apart)
        if self.scheme == "affine" and torch.compiler.is_exporting():
            return self._computed(slot)  # an exported net needs no tables
        return self.indices[self.window(slot)], self.signs[self.window(slot)]

    def scale_of(self, slot: int) -> float:
        """Factor of the weights that the layer in that slot reads, with its gain."""
        return self.scales[slot] * (1.0 if self.gains is None else float(self.gains.detach()[slot]))

    def read(self, slot: int) -> Tensor:
        """Reads the kernel of the layer in that slot."""
        return self(slot)  # a call, so that hooks run: some of torch's pruning and norms are hooks

    def forward(self, slot: int) -> Tensor:
        """Reads the kernel of the layer in that slot."""
        kernel = kernels.ring_kernel(self.values, *self.places(slot), self.scales[slot]).view(self.shapes[slot])
        return kernel if self.gains is None else kernel * self.gains[slot]

    def _computed(self, slot: int) -> tuple[Tensor, Tensor]:
        """Computes places and signs of a slot of the affine scheme."""
        subnet = self.subnets[slot]
        before = sum(n for n, s in zip(self.sizes[:slot], self.subnets[:slot], strict=True) if s == subnet)
        positions = torch.arange(before, before + self.sizes[slot], device=self.values.device)
        return affine_indices(positions, affine_constants(len(self.values), self.seed_of(subnet)))

    def extra_repr(self) -> str:
        subnets = f", {len(set(self.subnets))} sub-networks" if len(set(self.subnets)) > 1 else ""
        read = f"{len(self.values)} parameters read {sum(self.sizes)} times"
        return f"{read}, seed={self.seed}, scheme={self.scheme!r}{subnets}"


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
        slot: number of this layer among the ring's readers.
        size: length of the layer's own ring, an integer or a fraction in (0, 1] of the kernel's weights.
        seed: of the layer's own ring; so is `scheme`.
        scheme: see `pocketcnn.numerics.ring_indices`.
    Raises:
        ValueError: an argument out of range, or a slot whose shape is not that of the kernel.
    Cost: that of the convolution, and one gather of the kernel's weights.
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
        size: int | float = 0.25,
        seed: int = 0,
        scheme: str = "random",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if ring is None:
            ring = ParameterRing(
                [self.weight_shape],
                size,
                seed=seed,
                scheme=scheme,
                groups=[groups],
                device=device,
                dtype=dtype,
            )
        if not 0 <= slot < len(ring.shapes) or ring.shapes[slot] != self.weight_shape:
            held = ring.shapes[slot] if 0 <= slot < len(ring.shapes) else f"none of its {len(ring.shapes)} slots"
            raise ValueError(f"slot {slot} of the ring holds {held}, this layer reads {self.weight_shape}")
        self.ring, self.slot = ring, slot
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None

    def reset_parameters(self) -> None:
        """Redraws the ring, for all of its readers, and sets the bias to 0."""
        self.ring.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """The kernel, for nets that read it themselves: `F.conv2d(x, conv.weight)`. Writing to it has no effect."""
        return self.dense_weight()

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """The kernel, [out_channels, in_channels // groups, kernel_height, kernel_width]; the same for every `x`."""
        return self.ring.read(self.slot)

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the ring and, if the layers have them, their factors."""
        return list(self.ring.parameters())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, slot={self.slot}"


def sites(model: nn.Module, options: RingOptions) -> list[Site]:
    """Lists all convolutions, 1x1 shortcuts included, and linear layers; stem, classifier and linear layers are left alone
    by default.

    A site's detail is the name of the ring it reads and the number of the sub-network it is part of.
    """
    found = conv_sites(model, obstacle=lambda layer: "", kinds=(nn.Conv2d, *READING))
    rings = _rings(model, options.level, found)
    numbers = _subnets(model, options.subnets, found)
    return [
        dataclasses.replace(site, detail=(rings[site.name], numbers[site.name]))
        if site.name in rings
        else dataclasses.replace(site, reason=site.reason or "no pattern of level matches it", possible=False)
        for site in found
    ]


def _rings(model: nn.Module, level: str | dict[str, str], found: Sequence[Site]) -> dict[str, str]:
    """Names the ring that each site reads, by the site's name: "net", a stage's or block's name, or as given."""
    if isinstance(level, dict):
        return {name: level[pattern] for name, pattern in sites_by_pattern(found, level, "level").items()}
    if level == "net":
        return {site.name: "net" for site in found}
    rings = {}
    for site in found:
        block = block_of(model, site.name)
        # The stage is the module that holds the block; a convolution in no block is a stage of its own.
        rings[site.name] = block if level == "block" or block == site.name else block.rpartition(".")[0] or "net"
    return rings


def _subnets(model: nn.Module, pattern: str, found: Sequence[Site]) -> dict[str, int]:
    """Numbers the sub-network that each site is part of, from 0; sites in none share one more number."""
    if not pattern:
        return dict.fromkeys((site.name for site in found), 0)
    names = [name for name, _ in model.named_modules() if name and fnmatch.fnmatchcase(name, pattern)]
    # A module inside a sub-network may match too: the outermost one counts.
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    members = {name: [site for site in found if site.possible and matches(site, name)] for name in outer}
    if not any(members.values()):
        raise ValueError(f"subnets: pattern {pattern!r} matches no module with convolutions that could be replaced")
    numbers = dict.fromkeys((site.name for site in found), len(outer))
    for number, sites in enumerate(members.values()):
        numbers.update((site.name, number) for site in sites)
    return numbers


def build(sites: Sequence[Site], options: RingOptions) -> dict[str, nn.Module]:
    """Builds the rings, and for each site a layer that reads its ring."""
    readers: dict[str, list[Site]] = {}
    for site in sites:
        readers.setdefault(site.detail[0], []).append(site)
    numbers = {name: sum(site.module.weight.numel() for site in group) for name, group in readers.items()}
    sizes = lengths(options.size, numbers)
    built: dict[str, nn.Module] = {}
    for number, (name, group) in enumerate(readers.items()):
        convs = [site.module for site in group]
        kinds = {(conv.weight.device, conv.weight.dtype) for conv in convs}
        if len(kinds) > 1:
            raise ValueError(f"one ring cannot serve layers of different devices or dtypes: {sorted(map(str, kinds))}")
        ring = ParameterRing(
            [tuple(conv.weight.shape) for conv in convs],
            sizes[name],
            seed=(options.seed + (number << 32)) % 2**64,
            scheme=options.scheme,
            window=options.window,
            fans=[fan_out_of(conv) for conv in convs],
            subnets=[site.detail[1] for site in group],
            gain=options.gain,
            device=convs[0].weight.device,
            dtype=convs[0].weight.dtype,
        )
        for slot, (site, conv) in enumerate(zip(group, convs, strict=True)):
            built[site.name] = _reader(conv, ring, slot)
    return built


def _reader(layer: Any, ring: ParameterRing, slot: int) -> nn.Module:
    """Builds a layer like another one that reads a ring."""
    kind = type(layer)
    if kind is nn.Conv2d:
        return RingConv2d(**conv_arguments(layer), ring=ring, slot=slot)
    own = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    return READING[kind](**arguments_of(layer, kind), **own, ring=ring, slot=slot)


def _normalised(weights: Tensor) -> Tensor:
    """Scales weights to a mean square of 1; zeros stay zeros."""
    return weights / weights.square().mean().sqrt().clamp(min=torch.finfo(weights.dtype).tiny)


@torch.no_grad()
def match(trained: Mapping[str, Sequence[Any]], made: Mapping[str, nn.Module | None]) -> None:
    """Brings the kernels of all layers as near to trained ones as rings can, see `pocketcnn.numerics.ring_fit.fit_ring`."""
    readers: dict[ParameterRing, dict[int, Any]] = {}
    for name, layer in made.items():
        assert isinstance(layer, RingConv2d | AbstractReading)
        (conv,) = trained[name]
        readers.setdefault(layer.ring, {})[layer.slot] = conv
        if layer.bias is not None:
            layer.bias.copy_(conv.bias)
    for ring, convs in readers.items():
        weights = [convs[slot].weight.flatten() for slot in range(len(ring.shapes))]
        weights = [w.to(accumulation_dtype(w)) for w in weights]
        if ring.scheme in CODED:
            ring.codes.copy_(
                fit_windows(
                    [_normalised(w) for w in weights],
                    len(ring.values),
                    window=ring.span,
                    apart=ring.apart,
                    nearest=kernels.nearest_windows,
                )
            )
        places = [ring.places(slot) for slot in range(len(weights))]
        values, gains = fit_ring(weights, ring.scales, places, len(ring.values), std=ring.std)
        ring.values.copy_(values)
        assert ring.gains is not None
        ring.gains.copy_(gains)


METHOD = Method(
    name="ring",
    summary="all kernels are read off one short shared ring by seeded places and signs",
    source="Wang et al., Recurrent Parameter Generators, WACV 2023, arXiv 2107.07110",
    options=RingOptions,
    sites=sites,
    build=build,
    match=match,
    match_options={"gain": True},
    needs_seed=lambda options: "seed" in options and options.get("scheme") not in _SEEDLESS,
    searched={"size": Range(0.01, 1.0), "level": ("net", "stage")},
)
