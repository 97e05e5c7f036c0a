"""A value that belongs to a call of a net and is handed to modules deep inside it."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from pocketcnn.numerics._shapes import is_recorded, is_transformed


def tracing() -> bool:
    """Tells whether no values can be read or kept: the pass is traced, compiled, exported or transformed by `torch.func`."""
    return torch.compiler.is_compiling() or is_recorded() or is_transformed()


def _thread() -> int:
    """Identifies this thread; 0 while the compiler traces, because it cannot ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class CallValue:
    """A value that an outer module sets for the length of a call and inner modules read; each thread has its own.

    Calls may nest: the value set last counts.
    """

    def __init__(self) -> None:
        self._stacks: dict[int, list[Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CallValue":
        return CallValue()  # a copy has no part in a call that is under way

    def __reduce__(self) -> tuple[Any, ...]:
        return CallValue, ()

    def get(self) -> Any:
        """Returns the value set last in this thread; None if there is none."""
        stack = self._stacks.get(_thread())
        if not stack and torch.compiler.is_compiling():
            # It was set before the trace began. The tracing thread is not known; mostly there is only one.
            stack = next(iter(self._stacks.values()), None)
        return stack[-1] if stack else None

    def push(self, value: Any) -> None:
        """Sets a value until `pop`."""
        self._stacks.setdefault(_thread(), []).append(value)

    def pop(self) -> None:
        """Removes the value set last."""
        stack = self._stacks[_thread()]
        stack.pop()
        if not stack:
            del self._stacks[_thread()]

    def clear(self) -> None:
        """Removes all values of this thread."""
        self._stacks.pop(_thread(), None)

    @contextlib.contextmanager
    def given(self, value: Any) -> Iterator[None]:
        """Sets a value inside a `with`."""
        self.push(value)
        try:
            yield
        finally:
            self.pop()
