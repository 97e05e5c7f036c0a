import pytest

from pocketcnn.support.timing import Spread, Turns, first_line, in_turns


def test_sides_take_turns_in_both_orders():
    called = []
    sides = {name: lambda name=name: called.append(name) for name in "abc"}
    turns = in_turns(sides, seconds=0, least=3, warmup=1)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert turns.rounds == 3
    assert set(turns.seconds) == set(sides)


def test_short_calls_are_timed_more_often_than_long_ones(monkeypatch):
    """A call of 1 s with 5 seconds given begins after 0, 1, ... and 5 seconds, but not after 6."""
    now = [0.0]
    monkeypatch.setattr("pocketcnn.support.timing.time.perf_counter", lambda: now[0])

    def takes(seconds):
        return {"call": lambda: now.__setitem__(0, now[0] + seconds)}

    assert in_turns(takes(1.0), seconds=5).rounds == 6
    assert in_turns(takes(10.0), seconds=5).rounds == 3
    assert in_turns(takes(0.001), seconds=5, most=20).rounds == 20


def test_ratios_are_taken_round_by_round():
    """The second round is twice as slow for both, so the ratio is 2 in every round, whatever their medians are."""
    turns = Turns({"slow": (2.0, 4.0, 2.0), "fast": (1.0, 2.0, 1.0)})
    assert turns.ratio("slow", "fast") == Spread(2.0, 2.0, 2.0)
    assert turns.median("slow") == 2.0
    assert turns.milliseconds("fast") == Spread(1000.0, 1000.0, 1500.0)


@pytest.mark.parametrize(("error", "line"), [(ValueError("one\ntwo"), "ValueError: one"), (KeyError(), "KeyError: ")])
def test_errors_are_kept_as_a_line(error, line):
    assert first_line(error) == line
