"""Place on a parameter ring, and sign, of every weight of every layer.

Source: Wang et al., Compact and Optimal Deep Learning with Recurrent Parameter Generators, WACV 2023, section 3.
The paper draws the sampling and the shuffling from two seeds; here one seed gives independent streams (sampling,
shuffling, signs, ...) of numpy's `RandomState`, whose output numpy has promised never to change.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SCHEMES = ("random", "block", "affine", "identity", "windows", "codebook")
CODED = ("windows", "codebook")  # schemes that are read by stored codes
WINDOW = 9  # neighbouring parameters that a code of the scheme "windows" stands for by default: a kernel of 3x3
CODES = 1 << 16  # number of codes: each takes two bytes
_SAMPLING, _SHUFFLING, _SIGNS, _CHANNELS, _FILTERS, _AFFINE, _WINDOWS = range(7)
_TURNS = 16  # turns around the ring after which the steps repeat, from other starts
_PRIME = 2**31 - 1  # squares of smaller numbers fit in 64 bits


def ring_indices(
    sizes: Sequence[int],
    ring_size: int,
    *,
    seed: int,
    scheme: str = "random",
    filter_sizes: Sequence[int] | None = None,
    window: int = WINDOW,
) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """Computes the place on the ring and the sign of every weight of the layers.

    The layers read M = sum(sizes) weights off a ring of N parameters, in consecutive slices of one list of places. In
    every scheme but the last, each parameter is used floor(M / N) or floor(M / N) + 1 times.

    `"random"`, the paper's: the list holds floor(M / N) full copies of 0 .. N-1, then M mod N more drawn without
    replacement, and is shuffled once; each use has its own fair-coin sign.
    `"block"`, the paper's first form: the list goes round and round the ring; each layer has one permutation and one
    pattern of signs for the weights of a filter, the same for all of its filters.
    `"affine"`: places and signs are arithmetic, see `affine_indices`; an exported net needs no table of them.
    `"identity"`: round and round the ring, all signs positive: plain reuse, for comparison.
    `"windows"`: every `window` weights of a layer are neighbours on the ring, from a place and with a sign that the seed
    draws, see `window_codes`; a fit may choose them instead. Of a ring beyond `longest(window)`, parts are never read.
    `"codebook"`: like it, but windows start at multiples of `window` only, so that they do not overlap: vector quantisation, the
    control for what overlapping is worth.

    Args:
        sizes: number of weights of each layer, in the order of the layers; each at least 1.
        ring_size: N, number of parameters of the ring, at least 1; it may exceed M.
        seed: 0 <= seed < 2**64; the same seed gives the same answer for ever and on every machine.
        scheme: one of the above.
        filter_sizes: for `"block"`, number of weights of a filter, for each layer; by default a layer is one filter.
        window: for `"windows"` and `"codebook"`, number of neighbours.
    Returns:
        `(indices, signs)`: int64 places in [0, N) and int8 signs, -1 or 1, both flat, on the CPU, of length M.
    Raises:
        ValueError: a size below 1, no sizes, a ring size below 1, a seed out of range, an unknown scheme, or a layer
            that is no whole number of filters.
    Cost: no multiply-adds; about 30 ns for each of the M weights.
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
    check_seed(seed)
    total = sum(sizes)
    if scheme in CODED:
        apart = apart_in(scheme, window)
        parts = window_codes(sizes, seed=seed, window=window).split([code_count(size, window) for size in sizes])
        read = [window_indices(codes, ring_size, size, window, apart) for codes, size in zip(parts, sizes, strict=True)]
        return torch.cat([indices for indices, _ in read]), torch.cat([signs for _, signs in read])
    if scheme == "affine":
        return affine_indices(torch.arange(total, device="cpu"), affine_constants(ring_size, seed))
    if scheme == "random":
        copies, rest = divmod(total, ring_size)
        places = np.empty(total, dtype=np.int64)
        places[: copies * ring_size] = np.tile(np.arange(ring_size), copies)
        places[copies * ring_size :] = _stream(seed, _SAMPLING).permutation(ring_size)[:rest]
        _stream(seed, _SHUFFLING).shuffle(places)
        return torch.from_numpy(places), torch.from_numpy(_coins(_stream(seed, _SIGNS), total))
    places, signs = np.arange(total) % ring_size, np.ones(total, dtype=np.int8)
    if scheme == "block":
        stream, start = _stream(seed, _FILTERS), 0
        if filter_sizes is not None and len(filter_sizes) != len(sizes):
            raise ValueError(f"{len(sizes)} layers need as many sizes of filters, got {len(filter_sizes)}")
        for size, length in zip(sizes, filter_sizes or sizes, strict=True):
            if length < 1 or size % length:
                raise ValueError(f"a layer of {size} numbers is no whole number of filters of {length}")
            layer = slice(start, start + size)
            places[layer] = places[layer].reshape(-1, length)[:, stream.permutation(length)].ravel()
            signs[layer] = np.tile(_coins(stream, length), size // length)
            start += size
    return torch.from_numpy(places), torch.from_numpy(signs)


class AffineConstants(NamedTuple):
    """Constants of `affine_indices`; all of them follow from the ring's size and the seed."""

    ring_size: int
    steps: tuple[int, ...]  # coprime to the ring's size: going round in such steps meets every place once
    start: int
    shift: int
    signs: tuple[int, int, int]  # coefficients of a quadratic polynomial


def affine_constants(ring_size: int, seed: int) -> AffineConstants:
    """Draws the constants of the scheme `"affine"` for a ring and a seed."""
    stream = _stream(seed, _AFFINE)

    def number(below: int) -> int:
        return int.from_bytes(stream.bytes(8), "little") % below

    def step() -> int:
        while math.gcd(found := number(ring_size), ring_size) > 1:
            pass
        return found

    steps = tuple(step() for _ in range(_TURNS))
    signs = (1 + number(_PRIME - 1), number(_PRIME), number(_PRIME))
    return AffineConstants(ring_size, steps, number(ring_size), step(), signs)


def affine_indices(
    positions: Int[Tensor, " n"], constants: AffineConstants
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Computes places and signs at some positions of the layers' list, by arithmetic alone.

    Turn c = position // N goes round the ring in steps that are coprime to N, from a start of its own: position p reads
    place (step_c * (p mod N) + start + c * shift) mod N. Multiplying by a number coprime to N permutes 0 .. N-1. So each
    whole turn meets each place once, and the last, unfinished one meets no place twice: each place is used floor(M / N)
    or floor(M / N) + 1 times. The sign is positive if a quadratic polynomial of the position, modulo the prime
    2**31 - 1, lies in the lower half.

    Args:
        positions: int64, from 0.
        constants: see `affine_constants`.
    Returns:
        int64 places and int8 signs, of the positions' shape.
    """
    size = constants.ring_size
    turn = positions // size
    step = torch.tensor(constants.steps, device=positions.device)[turn % len(constants.steps)]
    places = (step * (positions % size) + constants.start + turn * constants.shift) % size
    a, b, c = constants.signs
    p = positions % _PRIME
    drawn = (a * (p * p % _PRIME) % _PRIME + b * p % _PRIME + c) % _PRIME
    return places, torch.where(drawn <= _PRIME // 2, 1, -1).to(torch.int8)


def lengths(size: int | float | dict[str, int | float], numbers: Mapping[str, int]) -> dict[str, int]:
    """Computes the length of each ring.

    Args:
        size: as in `RingOptions`; an integer is divided among the rings in proportion to the weights they replace.
        numbers: number of weights that each ring replaces, by the ring's name.
    Raises:
        ValueError: a ring without a size, a size without a ring, or an integer below the number of rings.
    Example:
        >>> lengths(10, {"early": 30, "late": 70}), lengths({"early": 0.5, "late": 4}, {"early": 30, "late": 70})
        ({'early': 3, 'late': 7}, {'early': 15, 'late': 4})
    """
    if isinstance(size, dict):
        if wrong := sorted(size.keys() ^ numbers.keys()):
            raise ValueError(
                f"size gives lengths for {', '.join(size)}, but the rings are {', '.join(numbers)}; see {wrong[0]}"
            )
        return {name: max(1, round(of * numbers[name])) if isinstance(of, float) else of for name, of in size.items()}
    if isinstance(size, float):
        return {name: max(1, round(size * count)) for name, count in numbers.items()}
    if size < len(numbers):
        raise ValueError(f"{size} parameters are too few for {len(numbers)} rings; size must be at least 1 for each")
    # Each ring has one parameter; the rest is divided, and the remainder of rounding goes to the largest fractions.
    shares = {name: (size - len(numbers)) * count / sum(numbers.values()) for name, count in numbers.items()}
    shared = {name: 1 + int(share) for name, share in shares.items()}
    left = size - sum(shared.values())
    for name in sorted(shares, key=lambda name: int(shares[name]) - shares[name])[:left]:
        shared[name] += 1
    return shared


def apart_in(scheme: str, window: int) -> int:
    """How far apart the places lie where windows may start."""
    return window if scheme == "codebook" else 1


def longest(window: int) -> int:
    """Length of the longest ring that windows of some length reach wholly."""
    return window * CODES // 2


def code_count(size: int, window: int = WINDOW) -> int:
    """Number of codes for the windows of a layer of `size` weights: one for every `window` weights begun."""
    return -(-size // window)


def window_codes(sizes: Sequence[int], *, seed: int, window: int = WINDOW) -> UInt8[Tensor, "codes 2"]:
    """Draws codes of the scheme `"windows"` at random: two bytes each, the lower one first.

    Args:
        sizes: number of weights of each layer.
        seed: 0 <= seed < 2**64; the same seed gives the same answer for ever and on every machine.
        window: number of weights that a code stands for.
    Returns:
        uint8, on the CPU; the codes of all layers in order. Bytes, because all devices and file formats have them.
    """
    check_seed(seed)
    drawn = _stream(seed, _WINDOWS).bytes(2 * sum(code_count(size, window) for size in sizes))
    return torch.frombuffer(bytearray(drawn), dtype=torch.uint8).view(-1, 2)


def window_indices(
    codes: UInt8[Tensor, "codes 2"], ring_size: int, size: int, window: int = WINDOW, apart: int = 1
) -> tuple[Int[Tensor, " size"], Int[Tensor, " size"]]:
    """Computes places and signs of the weights of a layer, from the codes of its windows.

    The lowest bit of a code is the sign, 1 for negative. The other bits, a number below 2**15, choose among the places where a
    window may start, which are counted out evenly; windows continue past the ring's end at its start.

    Args:
        codes: as many as `code_count(size, window)`.
        ring_size: N, number of parameters of the ring.
        size: number of weights of the layer.
        window: number of weights that a code stands for.
        apart: windows start at multiples of it.
    Returns:
        int64 places in [0, N) and int8 signs, -1 or 1.
    Example:
        >>> window_indices(torch.tensor([[0, 0], [1, 128]], dtype=torch.uint8), ring_size=10, size=11)
        (tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6]), tensor([ 1,  1,  1,  1,  1,  1,  1,  1,  1, -1, -1], dtype=torch.int8))
    """
    low, high = codes.long().unbind(1)
    code = low + 256 * high
    inside = torch.arange(window, device=codes.device)
    starts = code // 2 * max(1, ring_size // apart) // (CODES // 2) * apart
    places = (starts[:, None] + inside) % ring_size
    signs = (1 - 2 * (code % 2))[:, None].expand(-1, window).to(torch.int8)
    return places.flatten()[:size], signs.flatten()[:size]


def numbers_of_codes(codes: UInt8[Tensor, "codes 2"], starts: int) -> Int[Tensor, " codes"]:
    """The number of the place where each window starts, times two, plus one if its sign is negative.

    Args:
        codes: of windows.
        starts: number of places where windows may start: the ring's length, for windows that overlap.
    Returns:
        int64, below twice the number of places.
    """
    low, high = codes.long().unbind(1)
    code = low + 256 * high
    return code // 2 * starts // (CODES // 2) * 2 + code % 2


def codes_of_numbers(numbers: Int[Tensor, " codes"], starts: int) -> UInt8[Tensor, "codes 2"]:
    """The first code that `numbers_of_codes` maps to each number; a fit chooses among these only.

    Example:
        >>> numbers_of_codes(codes_of_numbers(torch.arange(20), starts=10), starts=10).equal(torch.arange(20))
        True
    """
    code = -(-(numbers // 2) * (CODES // 2) // starts) * 2 + numbers % 2
    return torch.stack([code % 256, code // 256], 1).to(torch.uint8)


def channel_indices(
    shapes: Sequence[tuple[int, int, int, int]], state_shape: tuple[int, int, int, int], *, seed: int
) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """Computes the place in a kernel-shaped state, and the sign, of every weight of kernels read off it by channels.

    Each kernel takes output and input channels of the state, drawn without replacement, with a fair-coin sign each.
    The plane of a pair of channels stays together, and a smaller kernel takes its middle. A kernel with more channels
    than the state is assembled from tiles, each drawn on its own.

    Args:
        shapes: of the kernels, [out_channels, in_channels, kernel_height, kernel_width].
        state_shape: of the state, whose kernel height and width are at least the kernels'.
        seed: 0 <= seed < 2**64; the same seed gives the same answer for ever and on every machine.
    Returns:
        `(indices, signs)`: int64 places in the flat state and int8 signs, both flat, on the CPU, in the order of the
        kernels.
    Raises:
        ValueError: no shapes, a kernel too high or too wide for the state, or a seed out of range.
    Cost: no multiply-adds; it is done once.
    """
    check_seed(seed)
    if not shapes:
        raise ValueError("channel_indices needs the shape of at least one kernel")
    stream = _stream(seed, _CHANNELS)
    rows, columns, height, width = state_shape
    state = np.arange(np.prod(state_shape)).reshape(state_shape)

    def draw(count: int, total: int) -> tuple[np.ndarray, np.ndarray]:
        return stream.permutation(total)[:count], _coins(stream, count)

    places, signs = [], []
    for shape in shapes:
        if shape[2] > height or shape[3] > width:
            raise ValueError(f"a kernel of {shape[2]}x{shape[3]} cannot be read off a state of {height}x{width}")
        top, left = (height - shape[2]) // 2, (width - shape[3]) // 2
        kernel = np.empty(shape, dtype=np.int64)
        sign = np.empty(shape, dtype=np.int8)
        for row in range(0, shape[0], rows):
            for column in range(0, shape[1], columns):
                tile = np.s_[row : row + rows, column : column + columns]
                (outs, out_signs), (ins, in_signs) = (
                    draw(count, total) for count, total in zip(kernel[tile].shape, (rows, columns), strict=False)
                )
                kernel[tile] = state[outs][:, ins, top : top + shape[2], left : left + shape[3]]
                sign[tile] = (out_signs[:, None] * in_signs)[..., None, None]
        places.append(kernel.ravel())
        signs.append(sign.ravel())
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(signs))


def check_seed(seed: int) -> None:
    """Checks a seed.

    Raises:
        ValueError: a seed outside [0, 2**64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), not {seed}")


def _stream(seed: int, purpose: int) -> np.random.RandomState:
    """Starts the random stream of a seed and a purpose."""
    # RandomState takes words of 32 bits; the third keeps the purposes apart.
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, purpose])


def _coins(stream: np.random.RandomState, count: int) -> np.ndarray:
    """Draws fair-coin signs, -1 or 1."""
    bits = np.unpackbits(np.frombuffer(stream.bytes(-(-count // 8)), dtype=np.uint8))[:count]
    return 1 - 2 * bits.astype(np.int8)


def ring_kernel(
    values: Float[Tensor, " ring"], indices: Int[Tensor, " n"], signs: Int[Tensor, " n"], scale: float
) -> Float[Tensor, " n"]:
    """Reads weights off a ring: weight `i` is `scale * signs[i] * values[indices[i]]`.

    Args:
        values: the ring.
        indices: places on the ring; places may repeat, and gradients of all their readings add up.
        signs: -1 or 1 for each weight.
        scale: ratio of the layer's standard deviation to the ring's.
    Returns:
        A new flat tensor in the dtype and on the device of `values`.
    Cost: one gather, no multiply-adds (a sign and a scale are one multiplication each).
    Example:
        >>> ring_kernel(torch.tensor([1.0, 2.0]), torch.tensor([1, 0, 1]), torch.tensor([1, -1, -1]), scale=0.5)
        tensor([ 1.0000, -0.5000, -1.0000])
    """
    return values.index_select(0, indices) * (signs.to(values.dtype) * scale)
