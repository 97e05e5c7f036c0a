"""A value that belongs to a call of a net and is handed to modules deep inside it.

Activation checkpointing repeats parts of a call during the backward pass, when the call is over and its values are gone.
So a module notes the value it was given in a part that may be repeated, under the features that it was given with, and
finds it by the same features again.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pocketcnn.numerics._shapes import is_recorded, is_transformed

_NOTES = 1024  # values that are remembered for repetitions, the newest ones
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tracing() -> bool:
    """Tells whether no values can be read or kept: the pass is traced, compiled, exported or transformed by `torch.func`."""
    return torch.compiler.is_compiling() or is_recorded() or is_transformed()


def _thread() -> int:
    """Identifies this thread; 0 while the compiler traces, because it cannot ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _task() -> int:
    """Identifies the backward pass that this code runs in; -1 for none."""
    return -1 if tracing() else torch._C._current_graph_task_id()


def repeating() -> bool:
    """Tells whether this code runs in a backward pass, as the parts do that activation checkpointing repeats."""
    return _task() != -1


def _part() -> Any:
    """Identifies the part of a call that activation checkpointing repeats as a whole; None while a net is traced.

    Both forms of `torch.utils.checkpoint` show: one switches gradients off, the other packs what operations save.
    """
    if tracing():
        return None
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(True)


def in_a_part() -> bool:
    """Tells whether this code may run in a part that activation checkpointing repeats."""
    return _part() not in (None, (True, None))


class Given(NamedTuple):
    """A value, and where it was set."""

    value: Any
    part: Any
    task: int


def is_repeatable(given: Given) -> bool:
    """Tells whether this code runs in a part of the call that may be repeated without the code that set the value."""
    return not tracing() and given.part != _part()


class CallValue:
    """A value that an outer module sets for the length of a call and inner modules read; each thread has its own.

    Calls may nest: the value set last counts. A backward pass sees only values that were set in it.
    """

    def __init__(self) -> None:
        self._stacks: dict[int, list[Given]] = {}
        self._notes: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CallValue":
        return CallValue()  # a copy has no part in a call that is under way

    def __reduce__(self) -> tuple[Any, ...]:
        return CallValue, ()

    def _last(self) -> Given | None:
        stack = self._stacks.get(_thread())
        if not stack and torch.compiler.is_compiling():
            # It was set before the trace began. The tracing thread is not known; mostly there is only one.
            stack = next(iter(self._stacks.values()), None)
        return stack[-1] if stack else None

    def get(self) -> Any:
        """Returns the value set last in this thread; None if there is none."""
        last = self._last()
        return None if last is None else last.value

    def current(self) -> Given | None:
        """Returns the value set last in this thread and in this backward pass, if one runs, with where it was set."""
        last = self._last()
        return last if last is not None and last.task == _task() else None

    def push(self, value: Any) -> None:
        """Sets a value until `pop`."""
        self._stacks.setdefault(_thread(), []).append(Given(value, _part(), _task()))

    def replace(self, value: Any) -> None:
        """Puts another value in the place of the one set last."""
        stack = self._stacks[_thread()]
        stack[-1] = Given(value, stack[-1].part, stack[-1].task)

    def pop(self) -> None:
        """Removes the value set last."""
        stack = self._stacks[_thread()]
        stack.pop()
        if not stack:
            del self._stacks[_thread()]

    def clear(self) -> None:
        """Removes all values that this thread has set in the backward pass that runs, or outside of one."""
        left = [given for given in self._stacks.pop(_thread(), []) if given.task != _task()]
        if left:
            self._stacks[_thread()] = left

    @contextlib.contextmanager
    def given(self, value: Any) -> Iterator[None]:
        """Sets a value inside a `with`."""
        self.push(value)
        try:
            yield
        finally:
            self.pop()

    def note(self, x: Tensor, value: Any, mark: Hashable) -> None:
        """Remembers a value for a repetition with the features `x`; equal values have equal marks."""
        key = fingerprint(x)
        known = self._notes.pop(key, (mark, value))
        self._notes[key] = (mark, value) if known[0] == mark else (_AMBIGUOUS, None)
        while len(self._notes) > _NOTES:
            self._notes.popitem(last=False)

    def known(self, x: Tensor, mark: Hashable = None) -> Any:
        """Returns the value noted with these features, and with that mark if one is given; None if there is none."""
        found = self._notes.get(fingerprint(x))
        return found[1] if found is not None and mark in (None, found[0]) else None

    def noted(self, x: Tensor, what: str) -> Any:
        """Returns the value that was noted with these features.

        Raises:
            RuntimeError: there is none, or there are several; `what` says what the value is.
        """
        found = self._notes.get(fingerprint(x))
        if found is None or found[0] is _AMBIGUOUS:
            why = "its call gave it other features" if found is None else "calls that gave it equal features differ"
            raise RuntimeError(
                f"activation checkpointing repeats a part of a net without {what}, and {why}; put the checkpoint round the "
                "whole net"
            )
        return found[1]


_AMBIGUOUS = object()


@torch.no_grad()
def fingerprint(x: Tensor) -> Hashable:
    """Sums up type, shape and bits of a tensor, row by row along the first axis, by 64-bit sums of weighted words."""
    with _disable_current_modes():  # neither counters nor caches of operations see this
        rows = x.detach().contiguous().flatten(1) if x.dim() > 1 else x.detach().reshape(len(x), -1)
        words = rows.view(_WORDS[rows.dtype.itemsize])
        words = words if words.dtype == torch.int64 else words.int()
        # Odd multiples of the golden ratio in 32 bits; products wrap, so the order of adding does not matter.
        weights = torch.arange(1, 2 * words.shape[1], 2, dtype=words.dtype, device=words.device) * -1640531535
        return x.dtype, x.shape, tuple((words * weights).sum(dim=1, dtype=torch.int64).tolist())
