"""Verdicts in words: is a published accuracy reproduced? Accuracies are in per cent."""

from collections.abc import Mapping, Sequence
from statistics import mean

from pocketcnn.support.intervals import interval


def verdict(accuracies: Sequence[float], published: float, images: int) -> str:
    """Returns "reproduced" if the published figure lies in our interval, else "above" or "below": where ours lies."""
    low, high = interval(accuracies, images)
    if low <= published <= high:
        return "reproduced"
    return "above" if published < low else "below"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal numbers share the mean of their ranks. It is 0 if either side is constant.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5
    """
    ranks = [
        [sum(y < x for y in numbers) + sum(y == x for y in numbers) / 2 for x in numbers] for numbers in (first, second)
    ]
    centred = [[rank - mean(column) for rank in column] for column in ranks]
    a, b = centred
    norm = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def order(accuracies: Mapping[str, float]) -> str:
    """Lists names from the best to the worst."""
    return " > ".join(sorted(accuracies, key=lambda name: -accuracies[name]))
