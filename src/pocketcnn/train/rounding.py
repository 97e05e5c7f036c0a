"""Training for few bits: the net computes with rounded weights, and the exact ones are kept beside it and trained.

Each weight of a net (see `pocketcnn.checkpoint.storage.weights_of`) is a whole number of few bits times a step size, one for each
row, as in the model file. Gradients pass the rounding as if it were not there, except where a weight is out of the numbers' range;
step sizes have gradients of their own. Between two steps of the optimizer the net holds its rounded weights, so whatever is
evaluated, stored or exported is what was computed.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020. We differ in that the logarithm of a step size is learnt, one for
each row, from the start that rounds the weights best.

A share of the weights can be zero, more of them from step to step (Zhu and Gupta, To Prune, or Not to Prune, 2017), chosen anew in
each: those that are small beside the others of their row. Small layers keep a larger share than large ones, in proportion to the
sum of a weight's sides over their product (Evci et al., Rigging the Lottery, ICML 2020). Ternary weights that are kept are signs, and
the step of a row is their mean size (Li et al., Ternary Weight Networks, 2016).
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
_STEP_DIGITS = 5  # of a step size: the exact weights make up for its rounding


class Rounding(nn.Module):
    """The exact weights of a net, and the step sizes by which it rounds them.

    The first and the last weight of two or more axes have 8 bits, because they are small and much depends on them.

    Args:
        net: its trainable weights are rounded from now on, in place; frozen ones stay as they are.
        bits: of the numbers; `"ternary"` for -1, 0 and 1, `"1"` for -1 and 1.
        sparsity: share of the weights that are zero in the end, without the first and the last, in [0, 1).
    Raises:
        ValueError: no such number of bits, zeros among weights of one bit, a net without trainable weights, or weights of 16 bits, whose products with a step
            would be rounded again.
    """

    def __init__(self, net: nn.Module, bits: Bits, sparsity: float = 0.0) -> None:
        super().__init__()
        self.sparsity = sparsity
        if bits not in _RANGES:
            raise ValueError(f"no bits {bits!r}; known: {', '.join(get_args(Bits))}")
        known = weights_of(net).values()
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
        self.round_(0.0)

    def _parts(self) -> Iterator[tuple[int, nn.Parameter, Tensor, nn.Parameter, str]]:
        """Yields the place of each weight, the weight, its exact values, the logarithms of its step sizes, and its bits."""
        for place, weight in enumerate(self._weights):
            yield (
                place,
                weight,
                self.get_buffer(f"exact{place}"),
                self.get_parameter(f"log_step{place}"),
                self.bits[place],
            )

    @torch.no_grad()
    def round_(self, progress: float = 1.0) -> None:
        """Takes the weights of the net as the exact ones, and rounds them in the net.

        Args:
            progress: the share of the training that is over, for the share of zeros.
        """
        for _, weight, exact, _, _ in self._parts():
            exact.copy_(weight)
        kept = self._kept(progress) if self.sparsity else {}
        for place, weight, exact, log_step, bits in self._parts():
            rows = rows_of(exact.float())
            if place in kept:
                rows = rows * kept[place]
            if bits == "8":  # so many numbers need no step that is learnt
                log_step.copy_((_largest(rows) / 127).log())
            elif place in kept and bits == "ternary":
                log_step.copy_(_filled(rows.abs().sum(1) / kept[place].sum(1).clamp(min=1), rows).log())
                rows = rows.sign() * _steps(log_step, bits)[:, None]
            weight.copy_(_rows_rounded(rows, log_step, bits).view(weight.shape))

    def _kept(self, progress: float) -> dict[int, Tensor]:
        """Finds which weights are not zero, as rows of booleans by the weight's place."""
        zeros = self.sparsity * (1 - (1 - min(1.0, progress / _RISES)) ** 3 / 2)
        shares = densities([self._weights[place].shape for place in self._inner], 1 - zeros)
        found = {}
        for place, share in zip(self._inner, shares, strict=True):
            rows = rows_of(self.get_buffer(f"exact{place}").float())
            sizes = rows.abs() / rows.square().mean(1, keepdim=True).sqrt().clamp(min=_TINY)
            less = sizes.numel() - round(share * sizes.numel())
            least = sizes.flatten().kthvalue(less).values if less else sizes.new_tensor(-1.0)
            larger = sizes > least
            found[place] = larger if larger.any() else sizes >= least  # all are of one size
        return found

    @torch.no_grad()
    def restore_(self) -> None:
        """Puts the exact weights into the net, for a step of the optimizer; gradients there become those of the exact weights."""
        for _, weight, exact, log_step, bits in self._parts():
            weight.copy_(exact)
            if weight.grad is None:
                continue
            low, high = _RANGES[bits]
            step = _steps(log_step, bits)
            x, gradient = rows_of(exact.float()) / step[:, None], rows_of(weight.grad.float())
            inside = (x >= low - 0.5) & (x <= high + 0.5) if bits != "1" else x.abs() <= 1.5
            # The derivative of the rounded weight by its step, over the step: relative changes of both are of one size.
            slope = torch.where(inside, _numbers(x, bits) - x, _numbers(x, bits)) * gradient
            relative = slope.sum(1) / math.sqrt(x.shape[1] * high) / step
            log_step.grad = relative.clamp(-_FASTEST, _FASTEST) if bits != "8" else None
            weight.grad.copy_((gradient * inside).view(weight.shape))


def densities(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Shares a number of weights that are not zero among tensors: small ones keep a larger part of theirs.

    Args:
        shapes: of the tensors.
        density: share of all weights that are not zero, in (0, 1].
    Returns:
        The share of each tensor's weights: in proportion to the sum of its sides over their product, and at most 1.
    Example:
        >>> [round(share, 2) for share in densities([(8, 3, 3, 3), (16, 8, 3, 3)], 0.5)]
        [1.0, 0.41]
    """
    sizes, sides = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
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

    Those of eight bits make the largest weight of a row 127, by which a file knows them again.
    """
    return rounded(log_step.detach().exp().clamp(min=_TINY), *([] if bits == "8" else [_STEP_DIGITS]))


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
