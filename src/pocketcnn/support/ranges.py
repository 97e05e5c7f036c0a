"""Ranges of options: an annotation says which numbers a field may hold, and `out_of_range` checks a record against it."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """The numbers from `low` to `high`; `more` leaves out the lower end, `less` the upper one. None is infinite or NaN."""

    low: float
    high: float = math.inf
    more: bool = False
    less: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.more else value >= self.low
        below = value < self.high if self.less else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be finite and more than {self.low}" if self.more else f"be finite and {self.low} or more"
        return f"lie in {'(' if self.more else '['}{self.low}, {self.high}{')' if self.less else ']'}"


Positive = Annotated[float, Within(0, more=True)]
NotNegative = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1, less=True)]  # in [0, 1)
Share = Annotated[float, Within(0, 1, more=True)]  # in (0, 1]
OpenFraction = Annotated[float, Within(0, 1, more=True, less=True)]  # in (0, 1)
Width = Annotated[float, Within(0.001, 1000)]
Count = Annotated[int, Within(1, 1_000_000)]
Number = Annotated[int, Within(0, 1_000_000)]
Pixels = Annotated[int, Within(1, 16_384)]
Threads = Annotated[int, Within(1, 1024)]
Workers = Annotated[int, Within(0, 1024)]
Channels = Annotated[int, Within(1, 65_536)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
InputSize = tuple[Channels, Pixels, Pixels]


def ranges_of(kind: Any) -> dict[str, Within]:
    """The ranges in the annotations of a dataclass, by field; those inside of `X | None` and of tuples count too."""
    found = {name: _within(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    return {name: within for name, within in found.items() if within is not None}


def out_of_range(record: Any) -> list[str]:
    """What is wrong with the numbers in a dataclass: `epochs must lie in [1, 1000000], got 0`; empty if nothing is.

    None and words, where a field allows them, are in no range.
    """
    bad = []
    for name, within in ranges_of(type(record)).items():
        value = getattr(record, name)
        numbers = [n for n in (value if isinstance(value, tuple | list) else [value]) if isinstance(n, int | float)]
        bad += [f"{name} must {within}, got {number}" for number in numbers if number not in within]
    return bad


def check_ranges(record: Any) -> None:
    """Checks the numbers in a dataclass against the ranges of their fields.

    Raises:
        ValueError: a number is out of its range, infinite or NaN.
    """
    if bad := out_of_range(record):
        raise ValueError("; ".join(bad))


def _within(hint: Any) -> Within | None:
    """The range in an annotation, or in the parts of a union or a tuple; of several parts the first one's."""
    if get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Within)), None)
    return next((found for part in get_args(hint) if (found := _within(part)) is not None), None)
