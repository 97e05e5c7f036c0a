"""Similarity of features and of filters, and the log-linear law: against definitions, loops and known answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn.numerics import (
    centred_gram,
    correlated_filters,
    filter_correlations,
    kernel_alignment,
    linear_cka,
    log_linear_fit,
)


def hsic(k, m):
    """tr(K H M H) / (n - 1)², with the centring matrix written out."""
    n = len(k)
    centring = torch.eye(n, dtype=k.dtype) - torch.ones(n, n, dtype=k.dtype) / n
    return float(torch.trace(k @ centring @ m @ centring)) / (n - 1) ** 2


def pearson(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    over = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return over / math.sqrt(sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), p=st.integers(1, 20), q=st.integers(1, 20), seed=st.integers(0, 1000))
def test_cka_equals_its_definition_by_hsic(n, p, q, seed):
    source = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, width, generator=source, dtype=torch.float64) + 2 for width in (p, q))
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-9)
    assert kernel_alignment(centred_gram(x), centred_gram(y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(50, 4), (6, 40)], ids=["by features", "by examples"])
def test_cka_does_not_see_rotation_scale_and_shift(shape):
    x, y = torch.randn(*shape), torch.randn(*shape)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64))[0]
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)
    assert linear_cka(x.double() @ turn * 7 + 3, y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    stretched = x.double() * torch.linspace(1, 9, shape[1], dtype=torch.float64)
    assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 1e-4


def test_cka_sums_in_float64():
    x = torch.randn(60, 5)
    assert linear_cka(1e4 + x, 1e4 + x) == pytest.approx(1, abs=1e-12)
    exact = linear_cka(x.double(), x.double().roll(1, 0))
    assert linear_cka(x, x.roll(1, 0)) == pytest.approx(exact, abs=1e-15)


@pytest.mark.parametrize("width", [2, 30])
def test_what_is_constant_resembles_nothing(width):
    constant = torch.full((7, width), 0.1)
    assert linear_cka(constant, torch.randn(7, width)) == 0
    assert linear_cka(constant, constant) == 0


def test_cka_names_what_is_wrong():
    with pytest.raises(ValueError, match="features must be of the same examples, got 3 and 4"):
        linear_cka(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="similarity needs at least 2 examples, got 1"):
        linear_cka(torch.randn(1, 2), torch.randn(1, 2))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(2, 3)),
    threshold=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_correlated_filters_equal_a_double_loop(shape, threshold, seed):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    r = filter_correlations(kernel)
    found = set()
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            expected = pearson(kernel[i], kernel[j])
            assert r[i, j].item() == pytest.approx(expected, abs=1e-9)
            if i != j and abs(expected) >= threshold:
                found |= {i, j}
    assert correlated_filters(kernel, threshold) == len(found)


def test_planted_twins_are_found():
    kernel = torch.randn(20, 16, 3, 3)
    assert correlated_filters(kernel, 0.8) == 0
    kernel[3] = 2 * kernel[11] + 1  # a twin
    kernel[7] = -0.1 * kernel[11]  # its negative
    kernel[0] = 0.3  # alike to none, not even to the next one
    kernel[1] = 0.5
    assert correlated_filters(kernel, 0.999) == 3
    assert filter_correlations(kernel)[0].abs().max() == 0
    assert filter_correlations(torch.ones(4, 1)).abs().max() == 0


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, math.nan])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\)"):
        correlated_filters(torch.randn(2, 3), threshold)


def test_a_kernel_has_filters():
    with pytest.raises(ValueError, match=r"a kernel is \[out_channels, \.\.\.\], got \[3\]"):
        filter_correlations(torch.randn(3))


def test_the_fit_finds_a_planted_law():
    numbers = [10**e for e in (3, 3.5, 4.2, 5, 6.1)]
    slope, intercept, r_squared = log_linear_fit(numbers, [12 + 9.5 * math.log10(n) for n in numbers])
    assert (slope, intercept, r_squared) == pytest.approx((9.5, 12, 1), abs=1e-9)
    # By hand: over x = 0, 1, 2 the accuracies 1, 2, 5 have the slope 2, the intercept 2/3 and 1 - (2/3) / (26/3).
    assert log_linear_fit([1, 10, 100], [1, 2, 5]) == pytest.approx((2, 2 / 3, 1 - 2 / 26), abs=1e-12)
    assert log_linear_fit([1, 10, 100], [0.5, 0.5, 0.5]) == (0, 0.5, 1)


@pytest.mark.parametrize(
    ("numbers", "accuracies", "message"),
    [
        ([1, 2], [1, 2], "fewer than 3 points says nothing, got 2"),
        ([1, 2, 3], [1, 2], "3 numbers for 2 accuracies"),
        ([1, 0, 3], [1, 2, 3], "stored numbers must be positive, got 0"),
        ([5, 5, 5], [1, 2, 3], "all nets store 5 numbers"),
    ],
)
def test_fits_that_make_no_sense(numbers, accuracies, message):
    with pytest.raises(ValueError, match=message):
        log_linear_fit(numbers, accuracies)
