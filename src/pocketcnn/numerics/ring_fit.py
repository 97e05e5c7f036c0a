"""Fitting a ring, and the choice of its windows, to given kernels by least squares.

A ring for trained kernels W_l minimises

    sum over layers l of  |W_l - g_l s_l sign * ring[index]|^2 / |W_l|^2 * (number of weights of l)

over the ring and the gains g_l, in turns. With the gains fixed, each parameter of the ring is a weighted mean over all of
its uses; with the ring fixed, each gain is a projection. If windows may be chosen, they form a codebook that lies on the
ring and overlaps itself: vector quantisation by Lloyd's algorithm (Linde, Buzo, Gray: An Algorithm for Vector Quantizer
Design, 1980), with the least squares above instead of the mean of a cell.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.numerics.ring_index import CODES, WINDOW, code_count, window_indices

Places = tuple[Tensor, Tensor]
_log = logging.getLogger(__name__)
_PATIENCE = 5  # seconds; a longer wait is announced
_ROWS = 256  # windows matched at once: their scores of all windows take 32 MiB


def fit_ring(
    weights: Sequence[Tensor],
    scales: Sequence[float],
    places: Sequence[Places],
    ring_size: int,
    *,
    std: float = 1.0,
    rounds: int = 4,
) -> tuple[Float[Tensor, " ring"], Float[Tensor, " layers"]]:
    """Finds the ring and the gains for which `gain * scale * sign * ring[index]` is nearest to the kernels of all layers.

    Args:
        weights: the kernels, flat.
        scales: the nominal scale of each layer.
        places: for each layer, the indices on the ring and the signs.
        ring_size: number of parameters of the ring.
        std: standard deviation to give the ring; the gains make up for it.
        rounds: number of rounds that solve for ring and gains in turn. Few are enough: on a crowded ring, more rounds only
            favour some layers at the cost of others.
    Returns:
        The ring, 0 where nothing reads it, and the gain of each layer.
    Cost: rounds passes over all weights of the kernels.
    """
    energies = [w.square().mean().clamp(min=torch.finfo(w.dtype).tiny) for w in weights]
    gains = torch.stack([e.sqrt() / (scale * std) for e, scale in zip(energies, scales, strict=True)])
    ring = weights[0].new_zeros(ring_size)
    layers = list(zip(weights, scales, places, energies, strict=True))
    for _ in range(rounds):
        above, below = torch.zeros_like(ring), torch.zeros_like(ring)
        for gain, (weight, scale, (indices, signs), energy) in zip(gains, layers, strict=True):
            factor = gain * scale
            above.index_add_(0, indices, weight * signs * (factor / energy))
            below.index_add_(0, indices, (factor.square() / energy).expand(len(weight)))
        ring = torch.where(below > 0, above / below, 0)
        spread = ring.square().mean().sqrt()
        if spread > 0:
            ring = ring * (std / spread)
        for number, (weight, scale, (indices, signs), _) in enumerate(layers):
            read = scale * signs * ring[indices]
            power = read.square().sum()
            gains[number] = (weight * read).sum() / power if power > 0 else 0
    return ring, gains


def nearest_windows(
    rows: Float[Tensor, "rows window"], windows: Float[Tensor, "windows window"]
) -> Int[Tensor, " rows"]:
    """Finds, for each row, the window for which |row - sign * window|^2 is least with the better of both signs.

    Args:
        rows: windows of kernels.
        windows: the windows that may be chosen.
    Returns:
        int64, the number of the window; of equals the first, up to rounding.
    Cost: rows * windows * length of a window multiply-adds.
    """
    half = windows.square().sum(1) / 2  # the square is least where |row . window| - |window|^2 / 2 is largest
    return torch.cat([((part @ windows.T).abs() - half).argmax(1) for part in rows.split(_ROWS)])


def fit_windows(
    weights: Sequence[Tensor],
    ring_size: int,
    *,
    window: int = WINDOW,
    apart: int = 1,
    rounds: int = 4,
    seed: int = 0,
    nearest: Callable[[Tensor, Tensor], Tensor] = nearest_windows,
) -> UInt8[Tensor, "codes 2"]:
    """Finds the codes with which windows of a ring come nearest to kernels.

    The ring starts as windows picked among the kernels' own. Then, in turn, each window of the kernels gets the nearest
    code, and each parameter of the ring becomes the mean of the weights that read it.

    Args:
        weights: the kernels, flat, brought to one scale.
        ring_size: number of parameters of the ring.
        window: number of weights that a code stands for.
        apart: windows start at multiples of it; with that of a window they do not overlap.
        rounds: number of rounds that choose codes and ring in turn.
        seed: of the first pick.
        nearest: `nearest_windows`, or a faster function that finds the same.
    Returns:
        uint8, the codes of all layers in order, as `window_indices` takes them.
    Cost: rounds * (weights of all kernels) * (places where windows start, at most 2**15 and `ring_size`) multiply-adds.
    """
    rows = torch.cat([F.pad(w, (0, -len(w) % window)).view(-1, window) for w in weights])
    known = torch.cat([_real(len(w), window) for w in weights]).to(rows)
    cut = (known[:, -1] == 0).nonzero().flatten()  # the last window of a layer may have fewer weights
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
    start = rows[picked[: code_count(ring_size, window)]].flatten()
    ring = start.repeat(-(-ring_size // len(start)))[:ring_size]
    codes, places = _starts(ring_size, window, apart, rows.device)
    began = time.monotonic()
    for number in range(rounds):
        book = ring[places]
        best = nearest(rows, book)
        half = known[cut] @ book.square().T / 2
        best[cut] = ((rows[cut] @ book.T).abs() - half).argmax(1)
        signs = torch.where((rows * book[best]).sum(1) < 0, -1.0, 1.0).to(rows)
        above = torch.zeros_like(ring).index_add_(0, places[best].flatten(), (rows * signs[:, None]).flatten())
        below = torch.zeros_like(ring).index_add_(0, places[best].flatten(), known.flatten())
        ring = torch.where(below > 0, above / below.clamp(min=1), ring)
        spent = time.monotonic() - began
        if (left := spent / (number + 1) * (rounds - number - 1)) > _PATIENCE:
            _log.info(
                "%d windows on a ring of %d: round %d of %d, %.0f s left",
                len(rows),
                ring_size,
                number + 1,
                rounds,
                left,
            )
    code = codes[best] + (signs < 0)
    return torch.stack([code % 256, code // 256], 1).to(torch.uint8)


def _starts(ring_size: int, window: int, apart: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The codes of positive sign whose windows start at different places, and those windows' places, [codes, window].

    On a short ring many codes start at one place; the first is enough.
    """
    code = torch.arange(0, CODES, 2, device=device)
    table = torch.stack([code % 256, code // 256], 1).to(torch.uint8)
    places = window_indices(table, ring_size, window * len(code), window, apart)[0].view(-1, window)
    differ = torch.cat([code[:1] == 0, places[1:, 0] != places[:-1, 0]])
    return code[differ], places[differ]


def _real(size: int, window: int) -> Tensor:
    """Marks the weights in a layer's windows by 1, and the padding of the last window by 0."""
    return (torch.arange(code_count(size, window) * window) < size).view(-1, window)
