"""How close a measured accuracy is to a published one, said in words. Accuracies are in per cent."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

_NORMAL = 1.96
# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; more of them than are listed take the last.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def interval(accuracies: Sequence[float], images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from one run or from several seeds.

    With one seed it is the binomial one of the test images, p ± 1.96 sqrt(p (1 - p) / images), by the normal
    approximation. With n seeds a second half-width joins it, Student's t times s / sqrt(n) over the seeds. All seeds share
    their test images, so averaging does not narrow the first one; the two have different causes and are added in squares.

    Example:
        >>> [round(end, 2) for end in interval([90.0], 10_000)]
        [89.41, 90.59]
    """
    middle = mean(accuracies)
    half = _NORMAL * (middle * (100 - middle) / images) ** 0.5
    if len(accuracies) > 1:
        student = _STUDENT[min(len(accuracies) - 1, len(_STUDENT)) - 1]
        half = (half**2 + (student * stdev(accuracies)) ** 2 / len(accuracies)) ** 0.5
    return middle - half, middle + half


def verdict(accuracies: Sequence[float], published: float, images: int) -> str:
    """`reproduced` where the published figure lies in our interval, else on which side of it we are."""
    low, high = interval(accuracies, images)
    if low <= published <= high:
        return "reproduced"
    return "above" if published < low else "below"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, equal numbers sharing the mean of their ranks; 0 where either is constant.

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
    """Names from the best to the worst."""
    return " > ".join(sorted(accuracies, key=lambda name: -accuracies[name]))
