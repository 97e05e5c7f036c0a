"""Similarity of representations and of filters; and growth of accuracy with the number of stored parameters.

Sources: Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019
(arXiv 1905.00414), for CKA; Wang et al., Compact and Optimal Deep Learning with Recurrent Parameter Generators, WACV 2023,
for the questions about filters and accuracy. The latter defines neither threshold nor correlation; ours are given below.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class LogLinear(NamedTuple):
    """accuracy = intercept + slope * log10(parameters), and the share of the accuracies' variance that it explains."""

    slope: float
    intercept: float
    r_squared: float


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Linear centred kernel alignment of two sets of features: |Y'X|² / (|X'X| |Y'Y|), in Frobenius norms.

    It stays the same when features are rotated, reflected, scaled or shifted. The products of features (p x p, p x q,
    q x q) or those of examples (twice n x n) are computed, whichever are cheaper; sums are in float64.

    Args:
        x: features of n examples.
        y: other features of the same examples, in the same order: m = n.
    Returns:
        Between 0 and 1; 0 if one of the two is constant, because a constant resembles nothing.
    Raises:
        ValueError: fewer than 2 examples, or not as many in both.
    Cost: min(p² + pq + q², (p + q) n) * n multiply-adds.
    Source: Kornblith et al., ICML 2019, equations 3 to 5 and section 3, with the biased estimate of HSIC.
    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> linear_cka(x, 3 * x.flip(1) + 1)
        1.0
    """
    if len(x) != len(y):
        raise ValueError(f"features must be of the same examples, got {len(x)} and {len(y)}")
    n, p, q = len(x), x.shape[1], y.shape[1]
    if n * (p + q) < p * p + p * q + q * q:
        return kernel_alignment(centred_gram(x), centred_gram(y))
    x, y = _centred(x), _centred(y)
    return _ratio((y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm())


def centred_gram(x: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """Inner products of examples after subtracting the mean example, in float64; 0 where features are constant.

    Raises:
        ValueError: fewer than 2 examples.
    """
    x = _centred(x)
    return x @ x.T


def kernel_alignment(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> float:
    """The cosine of two Gram matrices; linear CKA if they are those of `centred_gram`; 0 if one of them is 0."""
    return _ratio((a * b).sum(), a.norm() * b.norm())


def filter_correlations(kernel: Float[Tensor, "filters *rest"]) -> Float[Tensor, "filters filters"]:
    """Pearson's correlation of each two filters of a layer: the cosine after subtracting each filter's own mean.

    Filters of few weights are correlated by chance: |r| of two random ones of n weights is about 0.8 / sqrt(n).

    Args:
        kernel: [out_channels, ...], one filter a row.
    Returns:
        A symmetric float64 matrix with entries in [-1, 1]; 0 for a filter whose weights are all the same.
    Raises:
        ValueError: a kernel without a second axis.
    """
    if kernel.dim() < 2:
        raise ValueError(f"a kernel is [out_channels, ...], got {list(kernel.shape)}")
    rows = _centred(kernel.flatten(1).T, least=1).T
    norms = rows.norm(dim=1, keepdim=True)
    rows = rows / torch.where(norms > 0, norms, 1.0)
    return (rows @ rows.T).clamp(-1, 1)


def correlated_filters(kernel: Float[Tensor, "filters *rest"], threshold: float) -> int:
    """Counts the filters of a layer that resemble at least one other filter, or its negative.

    Args:
        kernel: [out_channels, ...], one filter a row.
        threshold: the least |r| of `filter_correlations` that counts, in (0, 1).
    Returns:
        Between 0 and out_channels, never 1.
    Raises:
        ValueError: a threshold out of range, or as in `filter_correlations`.
    Example:
        >>> correlated_filters(torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 1.0, -1.0]]), threshold=0.9)
        2
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    alike = filter_correlations(kernel).abs() >= threshold
    return int(alike.fill_diagonal_(False).any(1).sum())


def log_linear_fit(numbers: Sequence[int | float], accuracies: Sequence[int | float]) -> LogLinear:
    """Fits accuracies by least squares to the logarithm of the number of stored parameters.

    Args:
        numbers: number of parameters stored by each net, each above 0.
        accuracies: of the same nets, in any unit.
    Returns:
        The slope in that unit per decade, the accuracy at 1 parameter, and R², which is 1 if all accuracies are equal.
    Raises:
        ValueError: fewer than 3 nets, lists of different lengths, a number that is not positive, or numbers all equal.
    Source: Wang et al., WACV 2023: accuracy is about log-linear in the degrees of freedom.
    Example:
        >>> slope, intercept, r_squared = log_linear_fit([1e3, 1e4, 1e5], [0.6, 0.7, 0.8])
        >>> f"{slope:.3f} {intercept:.3f} {r_squared:.3f}"
        '0.100 0.300 1.000'
    """
    if len(numbers) != len(accuracies):
        raise ValueError(f"{len(numbers)} numbers for {len(accuracies)} accuracies")
    if len(numbers) < 3:
        raise ValueError(f"a line through fewer than 3 points says nothing, got {len(numbers)}")
    if not min(numbers) > 0:
        raise ValueError(f"stored numbers must be positive, got {min(numbers)}")
    x, y = np.log10(np.asarray(numbers, dtype=float)), np.asarray(accuracies, dtype=float)
    across, up = x - x.mean(), y - y.mean()
    if not across.any():
        raise ValueError(f"all nets store {numbers[0]} numbers; a slope needs different ones")
    slope = float(across @ up / (across @ across))
    rest = up - slope * across
    total = float(up @ up)
    return LogLinear(slope, float(y.mean() - slope * x.mean()), 1 - float(rest @ rest) / total if total else 1.0)


def _centred(x: Tensor, least: int = 2) -> Tensor:
    """Subtracts the means of columns, in float64; first the first row, so that a constant column becomes exactly 0."""
    if len(x) < least:
        raise ValueError(f"similarity needs at least {least} examples, got {len(x)}")
    x = x.double()
    x = x - x[:1]
    return x - x.mean(0)


def _ratio(above: Tensor, below: Tensor) -> float:
    """Divides, and clips to [0, 1]; 0 for a denominator of 0."""
    return float((above / below).clamp(0, 1)) if below > 0 else 0.0
