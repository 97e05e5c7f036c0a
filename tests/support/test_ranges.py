"""Ranges of numbers in the annotations of dataclasses."""

import math
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcnn.support.ranges import Count, Fraction, Positive, Share, Within, check_ranges, out_of_range, ranges_of
from pocketcnn.train import Hardware, TrainConfig


@dataclass(frozen=True)
class Record:
    count: Count = 1
    rate: Positive | None = 0.5
    shares: tuple[Share, ...] = ()
    free: float = math.nan
    odd: Annotated[int, "a remark"] = 3


@given(st.floats(), st.booleans(), st.booleans())
def test_within_is_the_interval(value, more, less):
    inside = (value > 0 if more else value >= 0) and (value < 1 if less else value <= 1)
    assert (value in Within(0, 1, more=more, less=less)) == inside


@given(st.floats())
def test_nothing_infinite_is_in_any_range(value):
    assert (value in Within(-math.inf)) == math.isfinite(value)


def test_ranges_are_found_inside_of_unions_and_tuples():
    assert set(ranges_of(Record)) == {"count", "rate", "shares"}
    assert out_of_range(Record()) == []
    assert out_of_range(Record(rate=None, shares=(1.0,))) == []
    bad = out_of_range(Record(count=0, rate=math.inf, shares=(0.5, 0.0, 2.0)))
    assert bad == [
        "count must lie in [1, 1000000], got 0",
        "rate must be finite and more than 0, got inf",
        "shares must lie in (0, 1], got 0.0",
        "shares must lie in (0, 1], got 2.0",
    ]
    with pytest.raises(ValueError, match=r"count must lie in \[1, 1000000\], got 0; rate"):
        check_ranges(Record(count=0, rate=math.inf))
    assert str(Within(0)) == "be finite and 0 or more"
    assert Fraction.__metadata__[0] == Within(0, 1, less=True)


NUMBERS = ranges_of(TrainConfig)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, 2**70])
def test_no_setting_of_a_training_is_absurd(name, value):
    if value in NUMBERS[name]:
        return
    with pytest.raises(ValueError, match=f"{name} must"):
        TrainConfig(**{name: (value,) if name == "milestones" else value})


def test_hardware_is_checked_too():
    with pytest.raises(ValueError, match="save_minutes must be finite and 0 or more, got nan"):
        Hardware(save_minutes=math.nan)
