"""Verdicts in words: is a published accuracy reproduced? Accuracies are in per cent."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

_NORMAL = 1.96
# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; the last one also for more of them.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def interval(accuracies: Sequence[float], images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from one seed or from several.

    With one seed it is the binomial interval of the test images in the normal approximation, p ± 1.96 sqrt(p (1 - p) /
    images). With n seeds there is a second half-width: Student's t times s / sqrt(n) over the seeds. The two have different
    causes, so their squares are added. Averaging does not narrow the first, as all seeds share their test images.

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
