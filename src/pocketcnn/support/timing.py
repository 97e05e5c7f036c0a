"""Calls timed in turns, so that whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Of a number over the rounds: its median, and the quartiles below and above it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Spread":
        """That of some values."""
        low, middle, high = np.percentile(list(values), (25, 50, 75))
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class Turns:
    """Seconds of each side in each round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        """How many were timed."""
        return len(next(iter(self.seconds.values())))

    def median(self, side: str) -> float:
        """Median seconds of a side."""
        return median(self.seconds[side])

    def milliseconds(self, side: str) -> Spread:
        """Of a side over the rounds."""
        return Spread.of(1e3 * s for s in self.seconds[side])

    def ratio(self, side: str, to: str) -> Spread:
        """How many times as long one side takes as another, round by round: what slows both down cancels."""
        return Spread.of(a / b for a, b in zip(self.seconds[side], self.seconds[to], strict=True))


def in_turns(
    sides: Mapping[str, Callable[[], Any]], *, seconds: float, least: int = 3, most: int = 50, warmup: int = 1
) -> Turns:
    """Makes each of some calls once in every round, in one order and in the opposite one by turns.

    Args:
        sides: the calls by name.
        seconds: for how long new rounds are begun.
        least: rounds that are timed however long they take.
        most: rounds that are timed at most.
        warmup: rounds before, which are not timed.
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
    """An error in a line: its kind, and the first thing it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
