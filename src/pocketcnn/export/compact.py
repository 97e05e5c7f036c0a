"""Nets that make their kernels while they run, from the numbers that their model files store.

An ordinary net with a kernel for each layer is what serves best, and what `materialize` gives; but its file is as large
as a plain net's. Here the same net is given its kernels anew in each call, read off the shared numbers at places which
the graph computes. Runtimes carry out what depends on no image when they load a file, so this costs time only then.

Places and signs of the scheme `affine` are arithmetic. Of all others the table is stored in as few bits as are found to
do: `Places` says how.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketcnn.methods.puppet import GeneratedConv2d, Puppeteer, PuppetStage
from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.numerics import ring_kernel
from pocketcnn.numerics.ring_index import affine_constants, affine_indices
from pocketcnn.surgery import materialize
from pocketcnn.surgery.folding import fold_norms_


class Codes(nn.Module):
    """Whole numbers below some limit, in as many bits as that needs: whole bytes, and 1, 2 or 4 bits that are left over.

    Args:
        numbers: int64, flat.
        limit: above all of them, at least 2.
    """

    rest: Tensor

    def __init__(self, numbers: Tensor, limit: int) -> None:
        super().__init__()
        self.count = len(numbers)
        num_bytes, bits = divmod((limit - 1).bit_length(), 8)
        self.bits = 0 if bits == 0 else 1 << (bits - 1).bit_length()
        if self.bits == 8:
            num_bytes, self.bits = num_bytes + 1, 0
        for place in range(num_bytes):
            self.register_buffer(f"byte{place}", (numbers >> 8 * place & 255).to(torch.uint8))
        self.num_bytes = num_bytes
        if self.bits:
            share = 8 // self.bits
            rest = nn.functional.pad(numbers >> 8 * num_bytes, (0, -self.count % share)).view(-1, share)
            self.register_buffer("rest", (rest << self._shifts()).sum(1).to(torch.uint8))

    def forward(self) -> Tensor:
        """The numbers, int64."""
        parts = [getattr(self, f"byte{place}").long() * 256**place for place in range(self.num_bytes)]
        if self.bits:
            split = self.rest.long()[:, None] // 2 ** self._shifts() % 2**self.bits
            parts.append(split.flatten()[: self.count] * 256**self.num_bytes)
        return sum(parts[1:], parts[0])

    def _shifts(self) -> Tensor:
        return torch.arange(0, 8, self.bits)


class Places(nn.Module):
    """Where the numbers of some kernels are read and with which sign, in about as few bytes as say it.

    A kernel is cut into rows of one length. If the place of number j of row r is `(rows[r] + columns[j]) mod length`, and
    its sign the product of one of r and one of j, only these are stored; with rows of one number they always can be. So
    whole filters are found that are read alike, and runs of neighbours. A place and a sign are one number: the place,
    and `length` more where the sign is negative.

    Args:
        indices: places of all kernels, flat.
        signs: -1 or 1 for each.
        shapes: of the kernels, in order.
        length: how many numbers there are to read.
    """

    def __init__(self, indices: Tensor, signs: Tensor, shapes: Sequence[tuple[int, ...]], length: int) -> None:
        super().__init__()
        self.length = length
        rows, columns = [], []
        sizes = [math.prod(shape) for shape in shapes]
        for shape, places, flips in zip(shapes, indices.long().split(sizes), signs.split(sizes), strict=True):
            found = (
                self._cut(places.view(-1, width), flips.view(-1, width) < 0)
                for width in (math.prod(shape[1:]), math.prod(shape[2:]), 1)
            )
            row, column = min((cut for cut in found if cut is not None), key=lambda cut: len(cut[0]) + len(cut[1]))
            rows.append(row)
            columns.append(column)
        self.heights, self.widths = list(map(len, rows)), list(map(len, columns))
        self.rows, self.columns = (Codes(torch.cat(codes), 2 * length) for codes in (rows, columns))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Places, int64, and signs, int8, as they were given."""
        rows = self.rows()
        if set(self.widths) == {1}:
            return rows % self.length, self._signs(rows)
        places, signs = [], []
        for row, column in zip(rows.split(self.heights), self.columns().split(self.widths), strict=True):
            places.append(((row[:, None] + column) % self.length).flatten())
            signs.append((self._signs(row)[:, None] * self._signs(column)).flatten())
        return torch.cat(places), torch.cat(signs)

    def _cut(self, places: Tensor, flips: Tensor) -> tuple[Tensor, Tensor] | None:
        """Codes of rows and columns that make a table, if there are any."""
        row, column = places[:, :1], (places[:1] - places[0, 0]) % self.length
        row_flip, column_flip = flips[:, :1], flips[:1] ^ flips[0, 0]
        if not (((row + column) % self.length == places).all() and ((row_flip ^ column_flip) == flips).all()):
            return None
        return (row + self.length * row_flip).flatten(), (column + self.length * column_flip).flatten()

    def _signs(self, codes: Tensor) -> Tensor:
        return torch.where(codes < self.length, 1, -1).to(torch.int8)


class Ring(nn.Module):
    """What all layers read off a ring, by slot, not scaled."""

    def __init__(self, ring: ParameterRing) -> None:
        super().__init__()
        self.ring = ring
        if ring.scheme != "affine":
            places, signs = zip(*map(ring.places, range(len(ring.shapes))), strict=True)
            self.places = Places(torch.cat(places), torch.cat(signs), ring.shapes, len(ring.values))

    def forward(self) -> dict[int, Tensor]:
        ring = self.ring
        if ring.scheme != "affine":
            places, signs = self.places()
            return dict(enumerate(ring_kernel(ring.values, places, signs, 1.0).split(ring.sizes)))
        read: dict[int, Tensor] = {}
        for subnet in dict.fromkeys(ring.subnets):
            slots = [slot for slot, number in enumerate(ring.subnets) if number == subnet]
            sizes = [ring.sizes[slot] for slot in slots]
            constants = affine_constants(len(ring.values), ring.seed_of(subnet))
            places, signs = affine_indices(torch.arange(sum(sizes)), constants)
            read.update(zip(slots, ring_kernel(ring.values, places, signs, 1.0).split(sizes), strict=True))
        return read


class Puppet(nn.Module):
    """The kernels of one level of a puppeteer, by slot: its differential equation is in the graph."""

    def __init__(self, puppeteer: Puppeteer, level: int) -> None:
        super().__init__()
        self.puppeteer, self.level = puppeteer, level

    def keep(self, slots: set[Any]) -> None:
        """Has kernels that nobody reads take no room: all of their numbers come from one place."""
        start = 0
        for slot, size in self.puppeteer.sizes.items():
            if slot not in slots:
                self.puppeteer.indices[start : start + size] = 0
                self.puppeteer.signs[start : start + size] = 1
            start += size

    def forward(self) -> Any:
        return self.puppeteer.kernels(self.level)


class ReadingNet(nn.Module):
    """An ordinary net, whose convolutions are given kernels anew in each call.

    Args:
        model: any net; it is left alone.
        entropy: as in `materialize`. Without one, stages whose depth depends on the image stay as they are.
        input_size: (channels, height, width) of an image.
    """

    def __init__(self, model: nn.Module, entropy: float | None, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        self.net = materialize(model, entropy=entropy, partly=True)
        self.sources = nn.ModuleList()
        self.reads: list[tuple[int, Any, str, torch.Size]] = []  # number of the source, slot, convolution, shape
        numbers: dict[Any, int] = {}
        layer: Any
        for name, layer in model.named_modules():
            if isinstance(layer, RingConv2d):
                number = numbers.setdefault(layer.ring, len(numbers))
                if number == len(self.sources):
                    self.sources.append(Ring(layer.ring))
                self._read(number, layer.slot, name, layer.ring.scale_of(layer.slot))
            elif isinstance(layer, PuppetStage) and not isinstance(self._conv(name), PuppetStage):
                if layer.puppeteer is None:
                    continue
                level = layer.level_of(entropy)
                number = numbers.setdefault((layer.puppeteer, level), len(numbers))
                if number == len(self.sources):
                    self.sources.append(Puppet(layer.puppeteer, level))
                for inner, conv in layer.blocks[: layer.depth_of(level)].named_modules():
                    if isinstance(conv, GeneratedConv2d):
                        self._read(number, conv.slot, f"{name}.{inner}", 1.0)
        for number, source in enumerate(self.sources):
            if isinstance(source, Puppet):
                source.keep({slot for other, slot, *_ in self.reads if other == number})
        fold_norms_(self.net, input_size)
        for _, _, name, _ in self.reads:
            conv = self._conv(name)
            conv.weight = nn.Parameter(conv.weight.detach()[:, :1, :1, :1].clone())

    def forward(self, x: Tensor) -> Any:
        made = [source() for source in self.sources]
        kernels = {
            f"{name}.weight": made[number][slot].view(shape) * self._conv(name).weight
            for number, slot, name, shape in self.reads
        }
        return functional_call(self.net, kernels, (x,))

    def _conv(self, name: str) -> Any:
        return self.net.get_submodule(name)

    def _read(self, number: int, slot: Any, name: str, scale: float) -> None:
        """Has a convolution keep what its kernel is multiplied by: folding adds the norm's factor to the scale."""
        self.reads.append((number, slot, name, self._conv(name).weight.shape))
        nn.init.constant_(self._conv(name).weight, scale)


class CompactNet(nn.Module):
    """A net in evaluation mode that makes its kernels in each call, and the tables of its puppeteers too.

    Args:
        model: as in `ReadingNet`; so are the others.
        entropy: as in `ReadingNet`.
        input_size: as in `ReadingNet`.
    """

    def __init__(self, model: nn.Module, entropy: float | None, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.fed = ReadingNet(model, entropy, input_size).eval()
        puppeteers = {name: module for name, module in self.fed.named_modules() if isinstance(module, Puppeteer)}
        self.names = list(puppeteers)
        self.tables = nn.ModuleList(
            Places(p.indices, p.signs, list(p.slots.values()), math.prod(p.state_shape)) for p in puppeteers.values()
        )

    def forward(self, x: Tensor) -> Any:
        given: dict[str, Tensor] = {}
        for name, table in zip(self.names, self.tables, strict=True):
            places, signs = table()
            given |= {f"{name}.indices": places.int(), f"{name}.signs": signs}
        return functional_call(self.fed, given, (x,))
