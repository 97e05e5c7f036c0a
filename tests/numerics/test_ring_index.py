import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from pocketcnn.numerics import ring_indices, ring_kernel

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None)
@given(sizes, st.integers(1, 150), st.integers(0, 2**64 - 1))
def test_every_number_is_used_floor_or_one_more_times(sizes, ring_size, seed):
    indices, signs = ring_indices(sizes, ring_size, seed=seed)
    total = sum(sizes)
    assert len(indices) == len(signs) == total
    used = torch.bincount(indices, minlength=ring_size)
    assert len(used) == ring_size
    assert set(used.tolist()) <= {total // ring_size, total // ring_size + 1}
    assert set(signs.tolist()) <= {-1, 1}


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.1, 2))
def test_ring_kernel_equals_loop(ring_size, count, scale):
    values = torch.randn(ring_size, dtype=torch.float64)
    indices, signs = ring_indices([count], ring_size, seed=1)
    assert torch.equal(ring_kernel(values, indices, signs, scale), oracles.ring_kernel(values, indices, signs, scale))


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
        content = indices.numpy().astype("<i8").tobytes() + signs.numpy().astype("<i1").tobytes()
        lines.append(f"{sizes} {ring_size} {seed} {hashlib.sha256(content).hexdigest()}")
    golden("ring_indices.txt", "\n".join(lines) + "\n")


test_a_seed_means_the_same_for_ever = pytest.mark.golden(test_a_seed_means_the_same_for_ever)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sizes=[3], ring_size=0, seed=0), "at least 1 number, not 0"),
        (dict(sizes=[], ring_size=3, seed=0), "at least 1 number off the ring"),
        (dict(sizes=[3, 0], ring_size=3, seed=0), r"got sizes \[3, 0\]"),
        (dict(sizes=[3], ring_size=3, seed=-1), "seed must lie in"),
        (dict(sizes=[3], ring_size=3, seed=0, scheme="spiral"), "no ring scheme 'spiral'; known: random"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ring_indices(**arguments)
