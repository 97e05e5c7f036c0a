"""Numbers come out as they went in, in few bytes; damaged and lying bytes are refused, and take no memory."""

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn.checkpoint import coding

TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool, torch.complex64,
)  # fmt: skip


@settings(deadline=None)
@given(data=st.binary(max_size=300), repeats=st.integers(1, 40))
def test_bytes_come_out_as_they_went_in(data, repeats):
    data *= repeats
    stored = coding.squeeze(data)
    assert coding.expand(stored, len(data)) == data
    assert len(stored) <= len(data) + 1


@settings(deadline=None)
@given(limit=st.integers(1, 2**31), count=st.integers(0, 60), seed=st.integers(0, 9))
def test_whole_numbers_come_out_as_they_went_in(limit, count, seed):
    numbers = torch.randint(0, limit, (count,), generator=torch.Generator().manual_seed(seed))
    stored = coding.write_numbers(numbers, limit)
    assert coding.read_numbers(stored, count, limit).equal(numbers)
    bits = max(1, (limit - 1).bit_length())
    assert len(stored) <= 3 + -(-count * bits // 8)


@settings(deadline=None)
@given(
    limit=st.integers(1, 2**31),
    count=st.integers(0, 3000),
    share=st.sampled_from([0.0, 0.001, 0.05, 0.6]),
    seed=st.integers(0, 9),
)
def test_numbers_that_are_mostly_equal_come_out_as_they_went_in(limit, count, share, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, limit, (count,), generator=generator)
    usual = torch.rand(count, generator=generator) >= share
    numbers[usual] = seed % limit
    stored = coding.write_numbers(numbers, limit)
    assert coding.read_numbers(stored, count, limit).equal(numbers)


@pytest.mark.parametrize("limit", range(1, 18))
def test_small_limits(limit):
    numbers = torch.arange(40) % limit
    assert coding.read_numbers(coding.write_numbers(numbers, limit), 40, limit).equal(numbers)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_values_of_every_type_come_out_bit_for_bit(dtype, count):
    raw = torch.randint(0, 256, (count * torch.empty(0, dtype=dtype).element_size(),), dtype=torch.uint8)
    values = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    back = coding.read_values(coding.write_values(values), count, dtype)
    assert back.dtype == dtype
    assert back.view(torch.uint8).equal(values.view(torch.uint8))


def test_rounded_and_skewed_numbers_take_few_bytes():
    torch.manual_seed(0)
    trits = torch.randint(0, 3, (10_000,))
    assert len(coding.write_numbers(trits, 3)) < 2050  # five in a byte; log2(3) bits each are 1,981 bytes
    skewed = (torch.rand(10_000) < 0.9).long()
    assert len(coding.write_numbers(skewed, 2)) < 650  # their entropy is 586 bytes
    few = torch.where(torch.rand(200_000) < 0.05, torch.randint(0, 2, (200_000,)) * 2, 1)
    assert len(coding.write_numbers(few, 3)) < 1.03 * 200_000 / 8 * (
        0.2864 + 0.05
    )  # their entropy: where they are, and signs
    rounded = torch.randn(1000).half().float()
    assert len(coding.write_values(rounded)) < 2000 < 3300 < len(coding.write_values(torch.randn(1000)))
    assert len(coding.write_values(torch.zeros(1000))) < 60


def test_numbers_out_of_range_are_refused():
    for numbers, limit in ([3], 3), ([-1], 3), ([0], 0), ([0], 2**31 + 1):
        with pytest.raises(ValueError, match="numbers below"):
            coding.write_numbers(torch.tensor(numbers), limit)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_bytes_end_in_an_error_or_in_numbers_that_are_allowed(data):
    limit = data.draw(st.sampled_from([2, 3, 200, 31_000]))
    numbers = torch.arange(500) * 7919 % limit
    numbers[torch.arange(500) % data.draw(st.sampled_from([1, 2, 50])) > 0] = 1
    stored = bytearray(coding.write_numbers(numbers, limit))
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    stored = bytes(stored[: data.draw(st.integers(0, len(stored)))])
    try:
        found = coding.read_numbers(stored, 500, limit)
    except ValueError:
        return
    assert len(found) == 500
    assert 0 <= int(found.min()) <= int(found.max()) < limit


@pytest.mark.parametrize("change", [lambda s, n: (s[:-1], n), lambda s, n: (s + b"x", n), lambda s, n: (s, n - 1), lambda s, n: (s, n + 1), lambda s, n: (b"", n), lambda s, n: (b"\x09" + s[1:], n)])  # fmt: skip
@pytest.mark.parametrize("data", [bytes(range(256)), b"ab" * 500, b"\0" * 5000 + bytes(range(99))])
def test_cut_and_lying_bytes_are_refused(data, change):
    stored, length = change(coding.squeeze(data), len(data))
    with pytest.raises(ValueError, match=r"are due|cannot be decoded|not known"):
        coding.expand(stored, length)


def test_numbers_of_eight_bits_are_read_as_bits_too():
    """As earlier files have them."""
    numbers = torch.arange(200) % 190
    stored = bytes([1]) + coding.squeeze(coding._FORMS[1].write(numbers.numpy(), 190))
    assert coding.read_numbers(stored, 200, 190).equal(numbers)


def test_runs_that_lead_out_of_the_numbers_are_refused():
    numbers = torch.zeros(4000, dtype=torch.long)
    numbers[3999] = 1
    stored = coding.write_numbers(numbers, 5000)
    for count in (3999, 1000, 1):
        with pytest.raises(ValueError, match=r"runs that reach number 4,000 of|runs in"):
            coding.read_numbers(stored, count, 5000)
    with pytest.raises(ValueError, match=r"not below 1|not known"):
        coding.read_numbers(stored, 4000, 1)


def test_bytes_that_would_swell_take_no_memory():
    bomb = coding.squeeze(bytes(20_000_000))
    assert len(bomb) < 30_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="1,000 that are due"):
            coding.expand(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
