"""Where each number of each layer is read on a parameter ring, and with which sign.

Source: Wang et al., Compact and Optimal Deep Learning with Recurrent Parameter Generators, WACV 2023, section 3.
The paper draws the sampling and the shuffling from two seeds; here one seed gives three independent streams
(sampling, shuffling, signs) of numpy's `RandomState`, whose output numpy has promised never to change.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SCHEMES = ("random",)
_SAMPLING, _SHUFFLING, _SIGNS = range(3)


def ring_indices(
    sizes: Sequence[int], ring_size: int, *, seed: int, scheme: str = "random"
) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """The place on the ring and the sign of every number that the layers read.

    The layers read M = sum(sizes) numbers off a ring of N. The list of places holds floor(M / N) full copies of
    0 .. N-1, then M mod N more drawn without replacement, and is shuffled once; so every stored number is used
    floor(M / N) or floor(M / N) + 1 times. Layers take consecutive slices. Each use has its own fair-coin sign.

    Args:
        sizes: how many numbers each layer reads, in the order of the layers; each at least 1.
        ring_size: N, how many numbers the ring stores, at least 1; it may exceed M.
        seed: 0 <= seed < 2**64; the same seed gives the same answer for ever and on every machine.
        scheme: how places are assigned; `"random"` is the one above.
    Returns:
        `(indices, signs)`: int64 places in [0, N) and int8 signs, -1 or 1, both flat, on the CPU, of length M.
    Raises:
        ValueError: a size below 1, no sizes, a ring size below 1, a seed out of range or an unknown scheme.
    Cost: no multiply-adds; about 30 ns for each of the M numbers.
    Example:
        >>> indices, signs = ring_indices([4, 3], ring_size=3, seed=0)
        >>> sorted(indices.tolist())  # 7 = 2 * 3 + 1: one of the three places is used a third time
        [0, 0, 0, 1, 1, 2, 2]
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no ring scheme {scheme!r}; known: {', '.join(SCHEMES)}")
    if ring_size < 1:
        raise ValueError(f"a ring holds at least 1 number, not {ring_size}")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"every layer reads at least 1 number off the ring; got sizes {list(sizes)}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), not {seed}")
    total = sum(sizes)
    copies, rest = divmod(total, ring_size)
    places = np.empty(total, dtype=np.int64)
    places[: copies * ring_size] = np.tile(np.arange(ring_size), copies)
    places[copies * ring_size :] = _stream(seed, _SAMPLING).permutation(ring_size)[:rest]
    _stream(seed, _SHUFFLING).shuffle(places)
    packed = np.frombuffer(_stream(seed, _SIGNS).bytes(-(-total // 8)), dtype=np.uint8)
    signs = 1 - 2 * np.unpackbits(packed)[:total].astype(np.int8)
    return torch.from_numpy(places), torch.from_numpy(signs)


def _stream(seed: int, purpose: int) -> np.random.RandomState:
    # RandomState takes words of 32 bits; the third keeps the purposes apart.
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, purpose])


def ring_kernel(
    values: Float[Tensor, " ring"], indices: Int[Tensor, " n"], signs: Int[Tensor, " n"], scale: float
) -> Float[Tensor, " n"]:
    """Reads numbers off a ring: number `i` is `scale * signs[i] * values[indices[i]]`.

    Args:
        values: the ring.
        indices: places on it; readings may repeat, and their gradients add up in the same place.
        signs: -1 or 1 for each reading.
        scale: brings the ring's standard deviation to the layer's.
    Returns:
        A new flat tensor in the dtype and on the device of `values`.
    Cost: one gather, no multiply-adds (a sign and a scale are one multiplication each).
    Example:
        >>> ring_kernel(torch.tensor([1.0, 2.0]), torch.tensor([1, 0, 1]), torch.tensor([1, -1, -1]), scale=0.5)
        tensor([ 1.0000, -0.5000, -1.0000])
    """
    return values.index_select(0, indices) * (signs.to(values.dtype) * scale)
