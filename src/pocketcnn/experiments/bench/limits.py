"""How fast this machine moves numbers and multiplies them: what no layer can be faster than."""

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
    """What a pass cannot do without: numbers read and written once, and multiply-adds.

    `products` are those of convolutions and matrix products, which have units of their own for low precision;
    `elementwise` those of numbers in place, taken in float32 at least.
    """

    bytes: int
    products: int = 0
    elementwise: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.products + other.products, self.elementwise + other.elementwise)


@dataclass(frozen=True)
class Limit:
    """The least time of some work: for moving its numbers, for its arithmetic, and the larger of both."""

    memory_ms: float
    arithmetic_ms: float
    ms: float


@dataclass(frozen=True)
class Machine:
    """Rates of this machine with the threads that torch takes.

    `bytes_per_second` are of copies, bytes read and bytes written, by how many there are in all: what fits in a cache
    is moved faster. `products_per_second` are multiply-adds of large matrix products by dtype, `elementwise_per_second`
    those of a vectorised loop in float32 over numbers that stay in the first cache.
    """

    bytes_per_second: Mapping[int, float]
    products_per_second: Mapping[str, float]
    elementwise_per_second: float

    def limit(self, work: Work, dtype: str) -> Limit:
        """The least time of some work, at the rate of the largest copy that was measured and moves no more than it."""
        size = max((n for n in self.bytes_per_second if n <= work.bytes), default=min(self.bytes_per_second))
        memory = 1e3 * work.bytes / self.bytes_per_second[size]
        arithmetic = 1e3 * (
            work.products / self.products_per_second[dtype] + work.elementwise / self.elementwise_per_second
        )
        return Limit(memory, arithmetic, max(memory, arithmetic))


def measure_machine(*, seconds: float = 1.0, sizes: tuple[int, ...] = _SIZES, side: int = 2048) -> Machine:
    """Measures the rates; each is the best of what fits in the time.

    Args:
        seconds: for each rate.
        sizes: bytes that the copies read and write in all.
        side: of the square matrices.
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
    """For each number a chain of multiply-adds, so that they and not the cache set the pace."""
    half, one = np.float32(0.5), np.float32(1)
    for _ in range(repeats):
        for i in range(numbers.size):
            y = numbers[i]
            for _ in range(_CHAIN):
                y = y * half + one
            numbers[i] = y
