"""The compiled search for windows finds what the definition finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn import kernels, numerics
from pocketcnn.numerics.ring_fit import fit_windows
from pocketcnn.numerics.ring_index import WINDOW, window_indices


def distances(rows, windows, found):
    chosen = windows[found]
    return torch.minimum((rows - chosen).square().sum(1), (rows + chosen).square().sum(1))


@settings(deadline=None)  # the first call compiles
@given(rows=st.integers(0, 200), windows=st.integers(1, 90), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_the_compiled_search_is_as_near_as_the_definition(rows, windows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, windows = torch.randn(rows, width, generator=generator), torch.randn(windows, width, generator=generator)
    fast, slow = kernels.nearest_windows(rows, windows), numerics.nearest_windows(rows, windows)
    assert fast.dtype == slow.dtype == torch.int64
    torch.testing.assert_close(distances(rows, windows, fast), distances(rows, windows, slow))


def test_several_threads_find_the_same_as_one():
    rows, windows = torch.randn(1000, WINDOW), torch.randn(300, WINDOW)
    one = kernels.nearest_windows(rows, windows)
    torch.set_num_threads(3)
    try:
        assert kernels.nearest_windows(rows, windows).equal(one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("sizes", [[90, 200], [9], [4], [1000, 1]])
@pytest.mark.parametrize(("ring_size", "window"), [(1, 9), (7, 9), (40, 9), (300, 9), (40, 3), (40, 12)])
def test_a_fit_by_either_search_has_the_same_error(sizes, ring_size, window):
    weights = [torch.randn(size) for size in sizes]

    def error(codes):
        parts = codes.split([-(-size // window) for size in sizes])
        read = [window_indices(c, ring_size, s, window) for c, s in zip(parts, sizes, strict=True)]
        places, signs = zip(*read, strict=True)
        places, signs, target = torch.cat(places), torch.cat(signs), torch.cat(weights)
        ring = torch.zeros(ring_size).index_add_(0, places, target * signs)
        ring /= torch.zeros(ring_size).index_add_(0, places, torch.ones_like(target)).clamp(min=1)
        return float((target - ring[places] * signs).square().sum())

    slow, fast = (
        error(fit_windows(weights, ring_size, window=window, nearest=n))
        for n in (numerics.nearest_windows, kernels.nearest_windows)
    )
    assert fast == pytest.approx(slow, rel=1e-3, abs=1e-6)
