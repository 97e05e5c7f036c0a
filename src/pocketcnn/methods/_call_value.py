"""A value that belongs to a call, and not to the module that holds it."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch


def tracing() -> bool:
    """Whether what runs is written down to be run again with other images."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def _thread() -> int:
    """This thread; while the compiler traces, which cannot ask, a place of its own."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class CallValue:
    """What one caller holds out to another for the length of a call, each thread its own."""

    def __init__(self) -> None:
        self._stacks: dict[int, list[Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CallValue":
        return CallValue()  # what is held out belongs to a call that is under way

    def __reduce__(self) -> tuple[Any, ...]:
        return CallValue, ()

    def get(self) -> Any:
        """What was held out last in this thread; None if nothing is."""
        stack = self._stacks.get(_thread())
        if not stack and torch.compiler.is_compiling():
            # Held out before the trace began. Which thread traces is not known; mostly there is but one.
            stack = next(iter(self._stacks.values()), None)
        return stack[-1] if stack else None

    def push(self, value: Any) -> None:
        """Holds out a value until `pop`."""
        self._stacks.setdefault(_thread(), []).append(value)

    def pop(self) -> None:
        """Takes back what was held out last."""
        stack = self._stacks[_thread()]
        stack.pop()
        if not stack:
            del self._stacks[_thread()]

    def clear(self) -> None:
        """Takes back everything that this thread holds out."""
        self._stacks.pop(_thread(), None)

    @contextlib.contextmanager
    def given(self, value: Any) -> Iterator[None]:
        """Holds out a value inside of a `with`."""
        self.push(value)
        try:
            yield
        finally:
            self.pop()
