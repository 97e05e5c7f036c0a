"""Training for few bits: the net computes with rounded weights, and the exact ones are kept beside it and trained.

Each weight of a net (see `pocketcnn.checkpoint.storage.weights_of`) is a whole number of few bits times a step size,
one for each row, as in the model file. Gradients pass the rounding as if it were not there, except where a weight is
out of the numbers' range; step sizes have gradients of their own. Between two steps of the optimizer the net holds its
rounded weights, so whatever is evaluated, stored or exported is what was computed.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020. We differ in that the logarithm of a step size is
learnt, one for each row, from the start that rounds the weights best.

A share of the weights can be zero: half of it from the start, or as much as is zero already, and more in each step (Zhu
and Gupta, To Prune, or Not to Prune, 2017). Zeros are chosen anew in each step: the weights that are small beside the
others of their row. Small layers keep a larger share than large ones, in proportion to the sum of a weight's sides over
their product (Evci et al., Rigging the Lottery, ICML 2020). Ternary weights that are kept are signs, times the mean
size of those in the row (Li et al., Ternary Weight Networks, 2016).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pocketcnn.checkpoint.storage import rounded, rows_of, weights_of

Bits = Literal["off", "8", "4", "3", "2", "ternary", "1"]
_RANGES = {"8": (-127, 127), "4": (-8, 7), "3": (-4, 3), "2": (-2, 1), "ternary": (-1, 1), "1": (-1, 1)}
_TRIED = 40  # step sizes tried for a start, as shares of the one that the largest weight asks for
_TINY = 1e-12
_FASTEST = 0.1  # largest gradient of the logarithm of a step size
_RISES = 0.5  # share of a training in which the share of zeros rises
_SMALL = 0.7  # times the mean size of a row: the threshold of ternary weight networks
_STEP_DIGITS = 5  # of a step size: the exact weights make up for its rounding


class Rounding(nn.Module):
    """The exact weights of a net, and the step sizes by which it rounds them.

    The first and the last weight of two or more axes have 8 bits, because they are small and much depends on them.

    Args:
        net: its trainable weights are rounded from now on, in place; frozen ones stay as they are.
        bits: of the numbers; `"ternary"` for -1, 0 and 1, `"1"` for -1 and 1.
        sparsity: share of the weights that are zero in the end, in [0, 1); the first and the last weight keep theirs.
    Raises:
        ValueError: no such number of bits, a sparsity out of range or of weights of one bit, a net without trainable
            weights, or weights of 16 bits, whose products with a step would be rounded again.
    """

    def __init__(self, net: nn.Module, bits: Bits, sparsity: float = 0.0) -> None:
        super().__init__()
        if not 0 <= sparsity < 1 or (sparsity and bits == "1"):
            raise ValueError(
                f"a sparsity lies in [0, 1), and weights of one bit have none; got {sparsity} for bits {bits}"
            )
        if bits not in _RANGES:
            raise ValueError(f"no bits {bits!r}; known: {', '.join(get_args(Bits))}")
        self.sparsity, known = sparsity, weights_of(net).values()
        self._weights = tuple(w for w in known if w.requires_grad)  # a tuple, so that they are the net's alone
        if not self._weights:
            raise ValueError(f"{type(net).__name__} has no weights to round that are trained")
        if odd := next((w.dtype for w in self._weights if w.dtype not in (torch.float32, torch.float64)), None):
            raise ValueError(f"weights of {odd} would be rounded twice; train few bits in float32 (net.float())")
        wide = [weight for weight in known if weight.dim() > 1]
        ends = {id(weight) for weight in (*wide[:1], *wide[-1:])}
        self.bits: list[str] = ["8" if id(weight) in ends else bits for weight in self._weights]
        for number, weight in enumerate(self._weights):
            exact = weight.detach().clone()
            self.register_buffer(f"exact{number}", exact)
            start = best_steps(rows_of(exact.float()), self.bits[number])
            # They take no part in a backward pass: several devices would wait for their gradients.
            self.register_parameter(f"log_step{number}", nn.Parameter(start.log(), requires_grad=False))
        self._inner = [number for number, weight in enumerate(self._weights) if id(weight) not in ends]
        if sparsity:
            self._begin_zeros(type(net).__name__)
        self.round_(0.0)

    def _begin_zeros(self, name: str) -> None:
        """Notes which weights are zero, and the share of zeros to begin with."""
        if not self._inner:
            raise ValueError(f"{name} has a first and a last layer only, which keep their weights; leave out sparsity")
        inner = [self._weights[number] for number in self._inner]
        zero = sum(int((w == 0).sum()) for w in inner) / sum(w.numel() for w in inner)
        self.register_buffer("begun", torch.tensor(min(self.sparsity, max(self.sparsity / 2, zero))))
        for number, weight in zip(self._inner, inner, strict=True):
            self.register_buffer(f"kept{number}", rows_of(weight.detach()) != 0)

    def _parts(self) -> Iterator[tuple[int, nn.Parameter, Tensor, nn.Parameter, str]]:
        """Yields the place of each weight, the weight, its exact values, the logarithms of its step sizes, and its bits."""
        for place, weight in enumerate(self._weights):
            exact, log_step = self.get_buffer(f"exact{place}"), self.get_parameter(f"log_step{place}")
            yield place, weight, exact, log_step, self.bits[place]

    @torch.no_grad()
    def round_(self, progress: float = 1.0) -> None:
        """Takes the weights of the net as the exact ones, and rounds them in the net.

        Args:
            progress: the share of the training that is over, for the share of zeros.
        """
        for _, weight, exact, _, _ in self._parts():
            exact.copy_(weight)
        if self.sparsity:
            self._choose_kept(progress)
        for place, weight, exact, log_step, bits in self._parts():
            rows, kept = rows_of(exact.float()), self._kept(place)
            if kept is not None:
                rows = rows * kept
            if bits == "8":  # so many numbers need no step that is learnt
                log_step.copy_(_filled(_largest(rows) / 127, rows).log())
            elif kept is not None and bits == "ternary":
                log_step.copy_(_filled(rows.abs().sum(1) / kept.sum(1).clamp(min=1), rows).log())
                rows = rows.sign() * _steps(log_step, bits)[:, None]
            weight.copy_(_rows_rounded(rows, log_step, bits).view(weight.shape))

    def _kept(self, place: int) -> Tensor | None:
        """Which weights are not zero, as rows of booleans; None for a tensor that keeps all."""
        return self.get_buffer(f"kept{place}") if self.sparsity and place in self._inner else None

    def _choose_kept(self, progress: float) -> None:
        """Chooses which weights are not zero."""
        more = self.sparsity - float(self.get_buffer("begun"))
        zeros = self.sparsity - more * (1 - min(1.0, progress / _RISES)) ** 3
        shares = densities([self._weights[place].shape for place in self._inner], 1 - zeros)
        for place, share in zip(self._inner, shares, strict=True):
            rows = rows_of(self.get_buffer(f"exact{place}").float())
            kept = _largest_share(rows / rows.square().mean(1, keepdim=True).sqrt().clamp(min=_TINY), share)
            if self.bits[place] == "ternary":  # small weights are zero in any case
                kept &= rows.abs() >= _SMALL * rows.abs().mean(1, keepdim=True)
            self.get_buffer(f"kept{place}").copy_(kept & (rows != 0))

    @torch.no_grad()
    def restore_(self) -> None:
        """Puts the exact weights into the net, for a step of the optimizer; gradients there become those of the exact weights."""
        for place, weight, exact, log_step, bits in self._parts():
            weight.copy_(exact)
            if weight.grad is None:
                continue
            low, high = _RANGES[bits]
            step = _steps(log_step, bits)
            x, gradient = rows_of(exact.float()) / step[:, None], rows_of(weight.grad.float())
            inside = (x >= low - 0.5) & (x <= high + 0.5) if bits != "1" else x.abs() <= 1.5
            # The derivative of the rounded weight by its step, over the step: relative changes of both are of one size.
            slope, kept = torch.where(inside, _numbers(x, bits) - x, _numbers(x, bits)) * gradient, self._kept(place)
            relative = (slope if kept is None else slope * kept).sum(1) / math.sqrt(x.shape[1] * high) / step
            computed = bits == "8" or (bits == "ternary" and kept is not None)  # and not learnt
            log_step.grad = None if computed else relative.clamp(-_FASTEST, _FASTEST)
            weight.grad.copy_((gradient * inside).view(weight.shape))


def _largest_share(values: Tensor, share: float) -> Tensor:
    """Marks the share of values whose sizes are largest; of equal ones the first."""
    sizes = values.abs()
    count = round(share * sizes.numel())
    if count in (0, sizes.numel()):
        return torch.full_like(sizes, count > 0, dtype=torch.bool)
    least = sizes.flatten().kthvalue(sizes.numel() - count).values
    marked, equal = sizes > least, (sizes == least).flatten().nonzero()[:, 0]
    marked.view(-1)[equal[: count - int(marked.sum())]] = True
    return marked


def densities(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Shares a number of weights that are not zero among tensors: small ones keep a larger part of theirs.

    Args:
        shapes: of the tensors.
        density: share of all weights that are not zero, in (0, 1].
    Returns:
        The share of each tensor's weights: in proportion to the sum of its sides over their product, and at most 1. A tensor of
        one axis, such as a ring, counts as a square.
    Example:
        >>> [round(share, 2) for share in densities([(8, 3, 3, 3), (16, 8, 3, 3)], 0.5)]
        [1.0, 0.41]
    """
    sizes = [math.prod(shape) for shape in shapes]
    sides = [sum(shape) if len(shape) > 1 else 2 * math.sqrt(math.prod(shape)) for shape in shapes]
    left, whole = density * sum(sizes), set[int]()
    while True:
        factor = left / max(1, sum(side for place, side in enumerate(sides) if place not in whole))
        more = {place for place, size in enumerate(sizes) if place not in whole and factor * sides[place] >= size}
        if not more:
            return [1.0 if place in whole else factor * sides[place] / size for place, size in enumerate(sizes)]
        whole |= more
        left -= sum(sizes[place] for place in more)


def _steps(log_step: Tensor, bits: str) -> Tensor:
    """Step sizes, with few digits, so that they take few bytes, and products with whole numbers are exact.

    Those of eight bits have more digits: the largest weight of a row must stay 127 steps, which is how `quantize` finds the step.
    """
    steps = log_step.detach().exp().clamp(min=_TINY)
    return rounded(steps) if bits == "8" else rounded(steps, digits=_STEP_DIGITS)


def _numbers(x: Tensor, bits: str) -> Tensor:
    """The whole numbers nearest to weights divided by their steps."""
    if bits == "1":
        return x.sign()  # 0 stays 0, where pruned weights are held
    return x.round().clamp(*_RANGES[bits])


def _rows_rounded(rows: Tensor, log_step: Tensor, bits: str) -> Tensor:
    step = _steps(log_step, bits)[:, None]
    return _numbers(rows / step, bits) * step


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1).clamp(min=_TINY)


@torch.no_grad()
def best_steps(rows: Tensor, bits: str) -> Tensor:
    """Finds for each row the step size by which it is rounded with the least squared error.

    Args:
        rows: [rows, weights].
        bits: of the numbers.
    Returns:
        [rows], more than 0.
    """
    largest = _largest(rows)
    if bits == "1":
        return _filled(rows.abs().mean(1), rows)
    found, least = largest.clone(), torch.full_like(largest, math.inf)
    for share in range(1, _TRIED + 1):
        step = largest * (share / _TRIED) / max(1, _RANGES[bits][1])
        error = (_numbers(rows / step[:, None], bits) * step[:, None] - rows).square().sum(1)
        found, least = torch.where(error < least, step, found), torch.minimum(error, least)
    return _filled(found, rows)


def _filled(steps: Tensor, rows: Tensor) -> Tensor:
    """Gives rows of zeros, which say nothing of their size, the median step of the others; or one of a usual start."""
    some = rows.abs().amax(1) > 0
    usual = steps[some].median() if some.any() else torch.tensor(rows.shape[1] ** -0.5)
    return torch.where(some, steps, usual.to(steps)).clamp(min=_TINY)
