"""Timing of calls in turns, so that other work on the machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of a number over the rounds, and the quartiles below and above it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Spread":
        """Computes median and quartiles of some values."""
        low, middle, high = np.percentile(list(values), (25, 50, 75))
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Turns:
    """Seconds of each side in each round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        """Number of timed rounds."""
        return len(next(iter(self.seconds.values())))

    def median(self, side: str) -> float:
        """Median seconds of a side."""
        return median(self.seconds[side])

    def milliseconds(self, side: str) -> Spread:
        """Milliseconds of a side over the rounds."""
        return Spread.of(1e3 * s for s in self.seconds[side])

    def ratio(self, side: str, to: str) -> Spread:
        """Time of one side over that of another, round by round, so that slowdowns of both cancel."""
        return Spread.of(a / b for a, b in zip(self.seconds[side], self.seconds[to], strict=True))


def in_turns(
    sides: Mapping[str, Callable[[], Any]], *, seconds: float, least: int = 3, most: int = 50, warmup: int = 1
) -> Turns:
    """Times calls in rounds; each round makes every call once, in alternating order.

    Args:
        sides: the calls by name.
        seconds: new rounds are begun for this long.
        least: least number of timed rounds, however long they take.
        most: largest number of timed rounds.
        warmup: number of earlier rounds that are not timed.
    """
    for _ in range(warmup):
        for call in sides.values():
            call()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    for number in range(most):
        if number >= least and time.perf_counter() > end:
            break
        for name in list(sides)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            sides[name]()
            taken[name].append(time.perf_counter() - start)
    return Turns({name: tuple(times) for name, times in taken.items()})


def first_line(error: Exception) -> str:
    """An error in one line: its class, and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
