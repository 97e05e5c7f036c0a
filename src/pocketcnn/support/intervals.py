"""95 % intervals of accuracies and of differences between accuracies, all in per cent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    half = (_of_images(middle, images) ** 2 + half_width(accuracies) ** 2) ** 0.5
    return middle - half, middle + half


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean, Student's t times s / sqrt(n); 0 for one value, which tells of no spread.

    Example:
        >>> round(half_width([1.0, 2.0, 3.0]), 2)
        2.48
    """
    if len(values) < 2:
        return 0.0
    return _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1] * stdev(values) / len(values) ** 0.5


@dataclass(frozen=True)
class Difference:
    """The difference of two mean accuracies, and half of its 95 % interval; None where nothing tells how wide that is."""

    mean: float
    half: float | None

    @property
    def told_apart(self) -> bool:
        """True if the interval does not hold 0. One without a width tells nothing: few images give equal differences."""
        return self.half is not None and abs(self.mean) > self.half > 0

    def __str__(self) -> str:
        """Writes it with its interval; `≈` stands before a difference that is not told apart from 0."""
        if self.half is None:
            return f"{self.mean:+.2f}"
        return f"{'' if self.told_apart else '≈ '}{self.mean:+.2f} ± {self.half:.2f}"


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The difference of the accuracies of two nets that were tested on the same images.

    With two or more shared seeds it is the mean over these of the differences of a seed, and the interval is theirs: what
    further seeds would give on these images. With two or more seeds each, and none shared, it is the difference of the
    means, and the squares of the two half-widths are added. One seed tells nothing of others: there is no interval.

    Args:
        ours: accuracies by seed.
        theirs: those of the net to compare with.
    Example:
        >>> str(difference({0: 90.0, 1: 91.0, 2: 92.0}, {0: 89.0, 1: 90.1, 2: 90.9}))
        '+1.00 ± 0.25'
        >>> str(difference({0: 90.0}, {0: 89.5}))
        '+0.50'
    """
    shared = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(shared) > 1:
        return Difference(mean(shared), half_width(shared))
    gap = mean(ours.values()) - mean(theirs.values())
    if min(len(ours), len(theirs)) < 2:
        return Difference(gap, None)
    halves = [half_width(list(side.values())) for side in (ours, theirs)]
    return Difference(gap, sum(half**2 for half in halves) ** 0.5)


def _of_images(accuracy: float, images: int) -> float:
    return _NORMAL * (accuracy * (100 - accuracy) / images) ** 0.5
