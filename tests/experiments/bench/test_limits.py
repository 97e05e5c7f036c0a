import pytest

from pocketcnn.experiments.bench.limits import Limit, Machine, Work, measure_machine


def test_rates_are_positive():
    machine = measure_machine(seconds=0, sizes=(2**12, 2**16), side=32)
    assert set(machine.bytes_per_second) == {2**12, 2**16}
    assert set(machine.products_per_second) == {"float32", "bfloat16"}
    rates = [*machine.bytes_per_second.values(), *machine.products_per_second.values(), machine.elementwise_per_second]
    assert min(rates) > 0


def test_the_larger_limit_counts():
    """1,000 bytes at the rate of the copies of 100 bytes, 50/ms, take 20 ms; 60 products at 10/ms and 40 at 5/ms, 14 ms."""
    machine = Machine({100: 5e4, 2000: 1e3}, {"float32": 1e4, "bfloat16": 4e4}, 5e3)
    assert machine.limit(Work(1000, 60, 40), "float32") == Limit(20.0, 14.0, 20.0)
    assert machine.limit(Work(4000), "float32").ms == 4000.0
    assert machine.limit(Work(10), "float32").ms == pytest.approx(0.2), (
        "smaller than all copies: the smallest one's rate"
    )
    assert machine.limit(Work(0, 60), "bfloat16").ms == 1.5
