"""Compiled functions that call each other by address, so that each is compiled once.

numba copies the code of a function into every function that calls it, and optimises it and generates machine code there
anew, level after level: with a dozen loops that takes half a minute. A *routine* is compiled alone instead, for types that
are written beside it, and is called through a table of addresses. It works on a whole tile, so the call costs nothing.

Callers hold places in the table, and numba keeps them on disk until the file that they are in changes. So routines that
call each other lie in one file.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
from numba import types
from numba.core import cgutils, event
from numba.core.caching import NullCache
from numba.extending import intrinsic

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

WHOLE, FLAG = types.int64, types.boolean
WHOLES = types.int64[::1]
_log = logging.getLogger(__name__)
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def launcher(function: Callable[..., Any], **options: Any) -> Any:
    """Compiles a function that Python calls, at its first call, without the interpreter's lock.

    The code is kept on disk if numba finds a folder that it may write to.
    """
    try:
        return numba.njit(cache=True, **_OPTIONS, **options)(function)
    except RuntimeError:  # there is no such folder
        return numba.njit(**_OPTIONS, **options)(function)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function that only compiled functions call: its code is copied into theirs."""
    return launcher(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@dataclass(frozen=True)
class Kinds:
    """The types of a pass: the numbers it computes with, and the pixels in memory, where int16 holds bfloat16."""

    number: Any
    pixel: Any

    @property
    def memory(self) -> Any:
        """A flat array of numbers."""
        return self.number[::1]

    @property
    def image(self) -> Any:
        """A flat array of pixels."""
        return self.pixel[::1]

    def __str__(self) -> str:
        return "bfloat16" if self.pixel == types.int16 else str(self.number)


KINDS = (
    Kinds(types.float32, types.float32),
    Kinds(types.float64, types.float64),
    Kinds(types.float32, types.int16),
)
Signature = Callable[[Kinds], tuple[Any, ...]]


class Routines:
    """The routines of one file and their table.

    Args:
        what: they compute, for the line that says what is being compiled.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.all: list[Any] = []

    def routine(self, signature: Signature) -> Callable[[Callable[..., Any]], Any]:
        """Makes a function a routine, which takes the table first and returns nothing.

        Args:
            signature: the types of its other arguments, for each of `KINDS`.
        """

        def register(function: Callable[..., Any]) -> Any:
            made = compiled(function)
            made.place, made.signature = len(self.all), signature
            self.all.append(made)
            return made

        return register

    def table(self, first: Any, number: np.dtype, pixel: np.dtype) -> np.ndarray:
        """Returns the addresses of a routine and of those that it calls, by their places; the others are 0.

        What has not been compiled for these types is compiled now, which one line in the log says, or read from disk.
        """
        return _table(self, first, Kinds(numba.from_dtype(number), numba.from_dtype(pixel)))

    def called_by(self, first: Any) -> list[Any]:
        """Returns a routine and those that it calls, directly or through other compiled functions.

        Raises:
            TypeError: one of them has its place in another table.
        """
        found = [first]
        for function in found:  # grows while it is walked
            for name in function.py_func.__code__.co_names:
                other = function.py_func.__globals__.get(name)
                if hasattr(other, "py_func") and other not in found:
                    found.append(other)
        routines = [function for function in found if hasattr(function, "place")]
        if strangers := [routine for routine in routines if routine not in self.all]:
            raise TypeError(f"{strangers[0].py_func.__name__} is a routine of another table")
        return routines


@functools.cache
def _table(routines: Routines, first: Any, kinds: Kinds) -> np.ndarray:
    table = np.zeros(len(routines.all), dtype=np.int64)
    kept = not isinstance(first._cache, NullCache)
    with event.install_listener("numba:compile", _Announcer(f"{routines.what} for {kinds}", kept)):
        for routine in routines.called_by(first):
            signature = (WHOLES, *routine.signature(kinds))
            routine.compile(signature)
            made = routine.overloads[signature]
            table[routine.place] = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return table


class _Announcer(event.Listener):
    """Logs a line when numba starts to compile something that it has not kept; one line for each thing."""

    done: ClassVar[set[str]] = set()

    def __init__(self, what: str, kept: bool) -> None:
        self.what = what
        self.how_often = (
            "once; numba keeps the result on disk" if kept else "in every process; numba finds no folder for it"
        )

    def on_start(self, event: Any) -> None:
        if self.what not in self.done:
            self.done.add(self.what)
            _log.warning("compiling %s: up to ten seconds, %s", self.what, self.how_often)

    def on_end(self, event: Any) -> None:
        pass


def signature_of(routine: Any, given: Any) -> tuple[Any, ...]:
    """Returns the types of a routine's arguments after the table.

    Raises:
        TypingError: of numba; those given do not fit.
    """
    plain = tuple(map(types.unliteral, given))
    for kinds in KINDS:
        if plain == (signature := tuple(routine.dispatcher.signature(kinds))):
            return signature
    raise numba.TypingError(f"{routine.dispatcher.py_func.__name__} takes {signature}, not {plain}")


def address_in(context: Any, builder: Any, routine: Any, table: Any) -> Any:
    """Emits the reading of a routine's address."""
    start = context.make_array(WHOLES)(context, builder, table).data
    return builder.load(cgutils.gep(builder, start, routine.dispatcher.place))


def call_at(context: Any, builder: Any, address: Any, signature: tuple[Any, ...], numbers: list[Any]) -> Any:
    """Emits a call of the routine at an address, and returns its status."""
    kind = context.call_conv.get_function_type(types.none, signature)
    function = builder.inttoptr(address, kind.as_pointer())
    return context.call_conv.call_function(builder, function, types.none, signature, numbers)[0]


@intrinsic(prefer_literal=False)
def call(typing, routine, table, arguments):
    """`call(routine, table, (a, b))` calls `routine(table, a, b)` by its address."""
    signature = signature_of(routine, arguments.types)

    def generate(context, builder, _, values):
        given = zip(cgutils.unpack_tuple(builder, values[2]), arguments.types, signature, strict=True)
        numbers = [context.cast(builder, value, had, wanted) for value, had, wanted in given]
        address = address_in(context, builder, routine, values[1])
        status = call_at(context, builder, address, (WHOLES, *signature), [values[1], *numbers])
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(routine, table, arguments), generate
