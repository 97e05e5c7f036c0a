"""The limits of this machine: how fast it moves numbers and multiplies them. No layer can be faster."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch

_SIZES = (2**18, 2**21, 2**24, 2**28)  # bytes, from a cache next to the core to memory
_CHAIN = 32


@dataclass(frozen=True)
class Work:
    """The least work of a pass: bytes read and written once, and multiply-adds.

    `products` are the multiply-adds of convolutions and matrix products, for which processors have low-precision units;
    `elementwise` are those of single numbers, done in float32 or better.
    """

    bytes: int
    products: int = 0
    elementwise: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.products + other.products, self.elementwise + other.elementwise)


@dataclass(frozen=True)
class Limit:
    """The least time of some work: for moving its bytes, for its arithmetic, and the larger of the two."""

    memory_ms: float
    arithmetic_ms: float
    ms: float


@dataclass(frozen=True)
class Machine:
    """Rates of this machine with as many threads as torch uses.

    `bytes_per_second` maps the size of a copy, bytes read plus bytes written, to its rate: copies that fit in a cache are
    faster. `products_per_second` has the multiply-adds of large matrix products by dtype. `elementwise_per_second` has those
    of a vectorised loop in float32 over numbers that stay in the first cache.
    """

    bytes_per_second: Mapping[int, float]
    products_per_second: Mapping[str, float]
    elementwise_per_second: float

    def limit(self, work: Work, dtype: str) -> Limit:
        """Computes the least time of some work, at the rate of the largest measured copy that moves no more bytes."""
        size = max((n for n in self.bytes_per_second if n <= work.bytes), default=min(self.bytes_per_second))
        memory = 1e3 * work.bytes / self.bytes_per_second[size]
        arithmetic = 1e3 * (
            work.products / self.products_per_second[dtype] + work.elementwise / self.elementwise_per_second
        )
        return Limit(memory, arithmetic, max(memory, arithmetic))


def measure_machine(*, seconds: float = 1.0, sizes: tuple[int, ...] = _SIZES, side: int = 2048) -> Machine:
    """Measures the rates; each is the best of the calls that fit in the time.

    Args:
        seconds: time for each rate.
        sizes: sizes of the copies, bytes read plus bytes written.
        side: side of the square matrices.
    """
    copies = {}
    for size in sizes:
        source, target = torch.ones(size // 8), torch.ones(size // 8)
        copies[size] = size / _best(lambda a=source, b=target: b.copy_(a), seconds)  # type: ignore[misc]
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.rand(side, side).to(dtype), torch.rand(side, side).to(dtype)
        products[str(dtype).removeprefix("torch.")] = side**3 / _best(lambda a=a, b=b: a @ b, seconds)  # type: ignore[misc]
    return Machine(copies, products, _elementwise(seconds))


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest call among those that fit in the time."""
    call()
    end, fastest = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end or fastest == float("inf"):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _elementwise(seconds: float, numbers: int = 2048, repeats: int = 500) -> float:
    threads = torch.get_num_threads()
    arrays = [np.ones(numbers, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        fastest = _best(lambda: list(pool.map(_chains, arrays, [repeats] * threads)), seconds)
    return threads * numbers * repeats * _CHAIN / fastest


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _chains(numbers: np.ndarray, repeats: int) -> None:
    """Computes a chain of multiply-adds for each number, so that arithmetic and not the cache limits the speed."""
    half, one = np.float32(0.5), np.float32(1)
    for _ in range(repeats):
        for i in range(numbers.size):
            y = numbers[i]
            for _ in range(_CHAIN):
                y = y * half + one
            numbers[i] = y
