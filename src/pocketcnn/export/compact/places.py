"""Whole numbers, and the places where kernels are read, stored in few bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Codes(nn.Module):
    """Whole numbers below a limit, in as many bits as the limit needs: whole bytes, and 1, 2 or 4 bits for the rest.

    Args:
        numbers: int64, flat, 0 or more.
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
    """Places and signs from which the weights of some kernels are read, stored in few bytes.

    A kernel is cut into rows of one length. If weight j of row r is read at `(rows[r] + columns[j]) mod length`, and its
    sign is the product of one sign of r and one of j, only `rows` and `columns` are stored; with rows of one weight this
    always works. Longer rows work for filters that are read alike, and for runs of neighbours; the last row of a kernel may
    be cut off. A place and a sign are stored as one number: the place, plus `length` where the sign is negative.

    Args:
        indices: places of all kernels, flat.
        signs: -1 or 1 for each place.
        shapes: of the kernels, in order.
        length: how many numbers there are to read from.
        widths: lengths of rows to try beside filters and their planes; those that need the fewest numbers are taken.
    """

    def __init__(
        self,
        indices: Tensor,
        signs: Tensor,
        shapes: Sequence[tuple[int, ...]],
        length: int,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.length = length
        rows, columns = [], []
        self.sizes = [math.prod(shape) for shape in shapes]
        for shape, places, flips in zip(shapes, indices.long().split(self.sizes), signs.split(self.sizes), strict=True):
            tried = (math.prod(shape[1:]), math.prod(shape[2:]), *widths, 1)
            found = (self._cut(places, flips < 0, width) for width in tried if width <= len(places))
            row, column = min((cut for cut in found if cut is not None), key=lambda cut: len(cut[0]) + len(cut[1]))
            rows.append(row)
            columns.append(column)
        self.heights, self.widths = list(map(len, rows)), list(map(len, columns))
        self.rows, self.columns = (Codes(torch.cat(codes), 2 * length) for codes in (rows, columns))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The places, int64, and the signs, int8, that were given."""
        rows = self.rows()
        if set(self.widths) == {1}:
            return rows % self.length, self._signs(rows)
        places, signs = [], []
        columns = self.columns().split(self.widths)
        for row, column, size in zip(rows.split(self.heights), columns, self.sizes, strict=True):
            places.append(((row[:, None] + column) % self.length).flatten()[:size])
            signs.append((self._signs(row)[:, None] * self._signs(column)).flatten()[:size])
        return torch.cat(places), torch.cat(signs)

    def _cut(self, places: Tensor, flips: Tensor, width: int) -> tuple[Tensor, Tensor] | None:
        """Codes of rows and columns that give the table; None if there are none for rows of this width."""
        row, column = places[::width, None], (places[None, :width] - places[0]) % self.length
        row_flip, column_flip = flips[::width, None], flips[None, :width] ^ flips[0]
        made = (row + column).flatten()[: len(places)] % self.length, (row_flip ^ column_flip).flatten()[: len(places)]
        if not (made[0].equal(places) and made[1].equal(flips)):
            return None
        return (row + self.length * row_flip).flatten(), (column + self.length * column_flip).flatten()

    def _signs(self, codes: Tensor) -> Tensor:
        return torch.where(codes < self.length, 1, -1).to(torch.int8)
