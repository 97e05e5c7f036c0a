"""Training for few bits: the net computes with rounded weights, and the exact ones are kept beside it and trained.

Each weight of a net (see `pocketcnn.checkpoint.storage.weights_of`) is a whole number of few bits times a step size, one for each
row, as in the model file. Gradients pass the rounding as if it were not there, except where a weight is out of the numbers' range;
step sizes have gradients of their own. Between two steps of the optimizer the net holds its rounded weights, so whatever is
evaluated, stored or exported is what was computed.

Source: Esser et al., Learned Step Size Quantization, ICLR 2020. We differ in that the logarithm of a step size is learnt, one for
each row, from the start that rounds the weights best.
"""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pocketcnn.checkpoint.storage import rounded, rows_of, weights_of

Bits = Literal["off", "8", "4", "3", "2", "ternary", "1"]
_RANGES = {"8": (-127, 127), "4": (-8, 7), "3": (-4, 3), "2": (-2, 1), "ternary": (-1, 1), "1": (-1, 1)}
_TRIED = 40  # step sizes tried for a start, as shares of the one that the largest weight asks for
_TINY = 1e-12
_FASTEST = 0.1  # largest gradient of the logarithm of a step size


class Rounding(nn.Module):
    """The exact weights of a net, and the step sizes by which it rounds them.

    The first and the last weight of two or more axes have 8 bits, because they are small and much depends on them.

    Args:
        net: its trainable weights are rounded from now on, in place; frozen ones stay as they are.
        bits: of the numbers; `"ternary"` for -1, 0 and 1, `"1"` for -1 and 1.
    Raises:
        ValueError: no such number of bits, a net without trainable weights, or weights of 16 bits, whose products with a step
            would be rounded again.
    """

    def __init__(self, net: nn.Module, bits: Bits) -> None:
        super().__init__()
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
        self.round_()

    def _parts(self) -> Iterator[tuple[nn.Parameter, Tensor, nn.Parameter, str]]:
        """Yields each weight, its exact values, the logarithms of its step sizes, and its bits."""
        for number, weight in enumerate(self._weights):
            yield weight, self.get_buffer(f"exact{number}"), self.get_parameter(f"log_step{number}"), self.bits[number]

    @torch.no_grad()
    def round_(self) -> None:
        """Takes the weights of the net as the exact ones, and rounds them in the net."""
        for weight, exact, log_step, bits in self._parts():
            exact.copy_(weight)
            if bits == "8":  # so many numbers need no step that is learnt
                log_step.copy_((_largest(rows_of(exact.float())) / 127).log())
            weight.copy_(_rows_rounded(exact, log_step, bits))

    @torch.no_grad()
    def restore_(self) -> None:
        """Puts the exact weights into the net, for a step of the optimizer; gradients there become those of the exact weights."""
        for weight, exact, log_step, bits in self._parts():
            weight.copy_(exact)
            if weight.grad is None:
                continue
            low, high = _RANGES[bits]
            step = _steps(log_step)
            x, gradient = rows_of(exact.float()) / step[:, None], rows_of(weight.grad.float())
            inside = (x >= low - 0.5) & (x <= high + 0.5) if bits != "1" else x.abs() <= 1.5
            # The derivative of the rounded weight by its step, over the step: relative changes of both are of one size.
            slope = torch.where(inside, _numbers(x, bits) - x, _numbers(x, bits)) * gradient
            relative = slope.sum(1) / math.sqrt(x.shape[1] * high) / step
            log_step.grad = relative.clamp(-_FASTEST, _FASTEST) if bits != "8" else None
            weight.grad.copy_((gradient * inside).view(weight.shape))


def _steps(log_step: Tensor) -> Tensor:
    """Step sizes, with few digits, so that products with whole numbers are exact."""
    return rounded(log_step.detach().exp().clamp(min=_TINY))


def _numbers(x: Tensor, bits: str) -> Tensor:
    """The whole numbers nearest to weights divided by their steps."""
    if bits == "1":
        return x.sign()  # 0 stays 0, where pruned weights are held
    return x.round().clamp(*_RANGES[bits])


def _rows_rounded(weight: Tensor, log_step: Tensor, bits: str) -> Tensor:
    step = _steps(log_step)[:, None]
    return (_numbers(rows_of(weight.float()) / step, bits) * step).view(weight.shape).to(weight.dtype)


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
