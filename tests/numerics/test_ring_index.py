import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from pocketcnn.numerics import channel_indices, ring_indices, ring_kernel
from pocketcnn.numerics.ring_index import (
    CODED,
    SCHEMES,
    WINDOW,
    affine_constants,
    affine_indices,
    codes_of_numbers,
    numbers_of_codes,
    window_codes,
    window_indices,
)

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(sizes, st.integers(1, 150), st.integers(0, 2**64 - 1), st.sampled_from([s for s in SCHEMES if s not in CODED]))
def test_every_number_is_used_floor_or_one_more_times(sizes, ring_size, seed, scheme):
    indices, signs = ring_indices(sizes, ring_size, seed=seed, scheme=scheme)
    total = sum(sizes)
    assert len(indices) == len(signs) == total
    used = torch.bincount(indices, minlength=ring_size)
    assert len(used) == ring_size
    assert set(used.tolist()) <= {total // ring_size, total // ring_size + 1}
    assert set(signs.tolist()) <= {-1, 1}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_block_has_one_permutation_and_one_pattern_of_signs_a_layer(layers, ring_size, seed):
    """Layer by layer and filter by filter, as the paper's first form is defined."""
    sizes, lengths = [filters * length for filters, length in layers], [length for _, length in layers]
    indices, signs = ring_indices(sizes, ring_size, seed=seed, scheme="block", filter_sizes=lengths)
    start = 0
    for filters, length in layers:
        patterns = set()
        for number in range(filters):
            here = range(start + number * length, start + (number + 1) * length)
            # Which of the consecutive places each number of the filter reads: the layer's permutation.
            assert sorted(indices[list(here)].tolist()) == sorted(p % ring_size for p in here)
            if ring_size >= length:
                order = tuple((int(indices[p]) - here[0]) % ring_size for p in here)
                patterns.add((order, tuple(signs[list(here)].tolist())))
        assert len(patterns) <= 1
        start += filters * length


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_affine_is_arithmetic_of_python_integers(ring_size, seed):
    found = affine_constants(ring_size, seed)
    assert all(math.gcd(step, ring_size) == 1 for step in (*found.steps, found.shift))
    positions = [0, 1, ring_size - 1, ring_size, 5 * ring_size + 3, 2**31 - 2, 2**31 - 1, 2**31 + 5]
    places, signs = affine_indices(torch.tensor(positions), found)
    a, b, c = found.signs
    for p, place, sign in zip(positions, places.tolist(), signs.tolist(), strict=True):
        turn, rest = divmod(p, ring_size)
        assert place == (found.steps[turn % len(found.steps)] * rest + found.start + turn * found.shift) % ring_size
        drawn = (a * (p % (2**31 - 1)) ** 2 + b * p + c) % (2**31 - 1)
        # Each of the three terms is reduced by itself, their sum once more.
        assert sign == (1 if drawn <= (2**31 - 1) // 2 else -1)


def test_affine_signs_are_fair_and_neighbours_do_not_agree_more_than_by_chance():
    _, signs = ring_indices([200_000], 20_000, seed=3, scheme="affine")
    signs = signs.float()
    assert abs(float(signs.mean())) < 0.02
    for lag in (1, 2, 3, 9, 144, 20_000, 40_000):  # neighbours, taps, filters, turns around the ring
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 0.02


def test_identity_is_plain_reuse():
    indices, signs = ring_indices([4, 3], 5, seed=9, scheme="identity")
    assert indices.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert signs.tolist() == [1] * 7


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.1, 2))
def test_ring_kernel_equals_loop(ring_size, count, scale):
    values = torch.randn(ring_size, dtype=torch.float64)
    indices, signs = ring_indices([count], ring_size, seed=1)
    assert torch.equal(ring_kernel(values, indices, signs, scale), oracles.ring_kernel(values, indices, signs, scale))


GOLDEN_CHANNELS = ([17, 16, 2, 1, 7, 6], [-1, 1, 1, -1, 1, -1])  # an old file must rebuild the same net for ever


def test_ring_kernel_gradcheck():
    indices, signs = ring_indices([7], 3, seed=0)
    values = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ring_kernel(v, indices, signs, 0.5), (values,))


def test_streams_are_independent_and_seeds_differ():
    first, second = ring_indices([5000], 5000, seed=0), ring_indices([5000], 5000, seed=1)
    assert (first[0] == second[0]).float().mean() < 0.01
    assert abs((first[1] == second[1]).float().mean() - 0.5) < 0.05
    assert abs(first[1].float().mean()) < 0.05
    # Longer seeds are not cut to 32 bits.
    assert not torch.equal(ring_indices([50], 50, seed=7)[0], ring_indices([50], 50, seed=7 + 2**32)[0])


def test_a_seed_means_the_same_for_ever(golden):
    """If this fails, files written before would load as other nets: never refresh it for a scheme that was released."""
    lines = []
    for sizes, ring_size, seed in (
        ([10], 4, 0),
        ([100, 60, 7], 50, 1),
        ([1000], 3000, 2**40 + 5),
        ([4096] * 3, 777, 12345),
    ):
        indices, signs = ring_indices(sizes, ring_size, seed=seed)
        lines.append(f"{sizes} {ring_size} {seed} {_digest(indices, signs)}")
    golden("ring_indices.txt", "\n".join(lines) + "\n")
    lines = []
    for scheme in ("affine", "block", "identity"):
        for sizes, ring_size, seed in (([12, 30], 4, 0), ([1000, 60], 3000, 2**40 + 5), ([4096] * 3, 777, 12345)):
            found = ring_indices(sizes, ring_size, seed=seed, scheme=scheme, filter_sizes=[s // 2 for s in sizes])
            lines.append(f"{scheme} {sizes} {ring_size} {seed} {_digest(*found)}")
    golden("ring_schemes.txt", "\n".join(lines) + "\n")


def _digest(indices, signs):
    content = indices.numpy().astype("<i8").tobytes() + signs.numpy().astype("<i1").tobytes()
    return hashlib.sha256(content).hexdigest()


test_a_seed_means_the_same_for_ever = pytest.mark.golden(test_a_seed_means_the_same_for_ever)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sizes=[3], ring_size=0, seed=0), "at least 1 number, not 0"),
        (dict(sizes=[], ring_size=3, seed=0), "at least 1 number off the ring"),
        (dict(sizes=[3, 0], ring_size=3, seed=0), r"got sizes \[3, 0\]"),
        (dict(sizes=[3], ring_size=3, seed=-1), "seed must lie in"),
        (
            dict(sizes=[3], ring_size=3, seed=0, scheme="spiral"),
            "no ring scheme 'spiral'; known: random, block, affine, identity",
        ),
        (
            dict(sizes=[10], ring_size=3, seed=0, scheme="block", filter_sizes=[4]),
            "10 numbers is no whole number of filters",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ring_indices(**arguments)


def test_channels_stay_together():
    shapes = [(4, 3, 3, 3), (5, 8, 1, 3), (20, 2, 3, 3)]
    state = torch.arange(6 * 8 * 9).view(6, 8, 3, 3)
    indices, signs = channel_indices(shapes, (6, 8, 3, 3), seed=1)
    start = 0
    for shape in shapes:
        size = torch.Size(shape).numel()
        kernel, sign = (flat[start : start + size].view(shape) for flat in (indices, signs))
        start += size
        rows, columns = kernel.flatten(2)[:, :, 0] // 72, kernel.flatten(2)[:, :, 0] // 9 % 8
        middle = slice(1, 2) if shape[2] == 1 else slice(None)
        for tile in range(0, shape[0], 6):
            here = slice(tile, tile + 6)
            assert len(rows[here, 0].unique()) == len(rows[here])  # drawn without replacement
            assert len(columns[tile].unique()) == shape[1]
            expected = state[rows[here, 0]][:, columns[tile]][:, :, middle]
            assert torch.equal(kernel[here], expected)
        assert (sign == sign[:, :, :1, :1]).all()
        assert sign.abs().eq(1).all()
    assert start == len(indices) == len(signs)


def test_channel_indices_never_change():
    indices, signs = channel_indices([(3, 2, 1, 1)], (4, 5, 1, 1), seed=7)
    assert (indices.tolist(), signs.tolist()) == GOLDEN_CHANNELS
    again = channel_indices([(3, 2, 1, 1)], (4, 5, 1, 1), seed=2**40 + 7)
    assert (again[0].tolist(), again[1].tolist()) != GOLDEN_CHANNELS


def test_bad_channel_requests():
    with pytest.raises(ValueError, match="cannot be read off a state of 3x3"):
        channel_indices([(4, 4, 5, 5)], (4, 4, 3, 3), seed=0)
    with pytest.raises(ValueError, match="at least one kernel"):
        channel_indices([], (4, 4, 3, 3), seed=0)
    with pytest.raises(ValueError, match="seed must lie"):
        channel_indices([(4, 4, 3, 3)], (4, 4, 3, 3), seed=-1)


@pytest.mark.parametrize(("window", "count"), [(WINDOW, 4 + 1 + 1), (3, 11 + 3 + 2), (12, 3 + 1 + 1)])
def test_windows_are_neighbours_with_one_sign_that_go_on_past_the_end(window, count):
    sizes, ring_size = [31, 9, 4], 13
    indices, signs = ring_indices(sizes, ring_size, seed=5, scheme="windows", window=window)
    codes = window_codes(sizes, seed=5, window=window).long()
    assert len(codes) == count
    expected, first = [], 0
    for size in sizes:
        for number in range(size):
            code = int(codes[first + number // window, 0]) + 256 * int(codes[first + number // window, 1])
            start = (code >> 1) * ring_size >> 15
            expected.append(((start + number % window) % ring_size, -1 if code & 1 else 1))
        first += -(-size // window)
    assert list(zip(indices.tolist(), signs.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("ring_size", "window"), [(27, 9), (30, 9), (5, 9), (100_000, 4)])
def test_windows_of_a_codebook_do_not_overlap(ring_size, window):
    indices, signs = ring_indices([400, 31], ring_size, seed=5, scheme="codebook", window=window)
    starts = torch.cat([indices[:400][::window], indices[400:][::window]])
    assert (starts % window == 0).all()
    assert int(starts.max()) <= max(0, ring_size - window), "no window goes on past the end"
    count = max(1, ring_size // window)
    numbers = torch.arange(2 * count)
    assert numbers_of_codes(codes_of_numbers(numbers, count), count).equal(numbers)
    assert set(signs.tolist()) <= {-1, 1}


def test_codes_of_windows_reach_every_place_and_both_signs():
    codes = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"), -1).view(-1, 2)
    for ring_size in (1, 7, 32768, 50_000):
        indices, signs = window_indices(codes.to(torch.uint8), ring_size, len(codes) * WINDOW)
        starts = indices.view(-1, WINDOW)[:, 0]
        assert len(starts.unique()) == min(ring_size, 32768)
        assert set(signs.tolist()) == {-1, 1}
        assert int(indices.max()) < ring_size
