"""Sharing out compiled work among the threads that torch works with.

Other threads would have to be woken for every call, which can take longer than the call, and would compete for the cores
with torch's, which stay awake for a while after each of its own operations. So where torch brings GNU's OpenMP its team of
threads does the work, without the interpreter, whose lock they would wait for; elsewhere a pool does.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pocketcnn.kernels._routines import WHOLES, address_in, call_at, signature_of

_NUMBERS_A_THREAD = 2**13  # some 20 microseconds of work


def share(
    launch: Callable[..., None],
    table: np.ndarray,
    count: int,
    size: int,
    *arguments: Any,
    threads: int | None = None,
) -> None:
    """Shares `count` pieces of work out equally among as many threads as torch uses.

    Args:
        launch: compiled; called as `launch(team, table, parts, first, last, part, *arguments)` it calls `fork` with all that.
        table: of the routines that it calls.
        count: of pieces.
        size: pixels in all; another thread is used only if there are enough for it.
        *arguments: for the kernel.
        threads: the most threads to use, if the kernel writes to a place for each.
    """
    parts = max(1, min(threads or torch.get_num_threads(), size // _NUMBERS_A_THREAD, count))
    team = _team()
    if parts == 1 or team.any():
        launch(team, table, parts, 0, count, 0, *arguments)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(launch, team, table, 1, bounds[i], bounds[i + 1], i, *arguments) for i in range(1, parts)]
    launch(team, table, 1, 0, bounds[1], 0, *arguments)
    for other in others:
        other.result()


@intrinsic(prefer_literal=False)
def fork(typing, routine, team, table, parts, first, last, part, arguments):
    """Calls `routine(table, first, last, part, *arguments)` for pieces from `first` to `last`.

    The threads of torch's team get equal shares, numbered by `part` from 0. If `parts` is 1, this thread does all.
    """
    whole = (types.intp,) * 3
    signature = (WHOLES, *signature_of(routine, (*whole, *arguments.types)))

    def generate(context, builder, _, values):
        _routine, team, table, parts, first, last, part, given = values
        address = address_in(context, builder, routine, table)

        def call(builder, address, table, first, last, part, given):
            numbers = [table, first, last, part, *cgutils.unpack_tuple(builder, given)]
            return call_at(context, builder, address, signature, numbers)

        alone = builder.icmp_signed("==", parts, ir.Constant(parts.type, 1))
        with builder.if_else(alone) as (here, in_team):
            with here:
                status = call(builder, address, table, first, last, part, given)
                with cgutils.if_unlikely(builder, status.is_error):
                    context.call_conv.return_status_propagate(builder, status)
            with in_team:
                addresses = context.make_array(WHOLES)(context, builder, team).data
                found = [builder.load(cgutils.gep(builder, addresses, place)) for place in range(3)]
                failed = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(1), 0))
                packed = cgutils.pack_struct(
                    builder, [parts, first, last, found[1], found[2], failed, address, table, given]
                )
                body = _body(builder.module, packed.type, routine.dispatcher.py_func.__name__, call)
                data = builder.bitcast(cgutils.alloca_once_value(builder, packed), cgutils.voidptr_t)
                kind = ir.FunctionType(ir.VoidType(), [body.type, cgutils.voidptr_t, _INT, _INT])
                run = builder.inttoptr(found[0], kind.as_pointer())
                builder.call(run, [body, data, builder.trunc(parts, _INT), ir.Constant(_INT, 0)])
                with cgutils.if_unlikely(builder, builder.load(failed)):
                    context.call_conv.return_user_exc(
                        builder, MemoryError, ("Allocation failed (too large for every thread to have one).",)
                    )
        return context.get_dummy_value()

    return types.void(routine, team, table, parts, first, last, part, arguments), generate


_INT = ir.IntType(32)


def _body(module: ir.Module, packed: ir.Type, name: str, call: Callable[..., Any]) -> ir.Function:
    """Emits the function that each thread of the team runs: every n-th part, from the thread's own number on.

    Only memory can run out there; then the thread sets a flag.
    """
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]), name=f"{name}.body")
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block())
    data = builder.load(builder.bitcast(body.args[0], packed.as_pointer()))
    parts, first, last, number, threads, failed, address, table, given = (
        builder.extract_value(data, place) for place in range(9)
    )
    ask = ir.FunctionType(_INT, []).as_pointer()
    mine, step = (
        builder.zext(builder.call(builder.inttoptr(address, ask), []), parts.type) for address in (number, threads)
    )
    count = builder.sub(last, first)

    def bound(part):
        return builder.add(first, builder.sdiv(builder.mul(count, part), parts))

    with cgutils.for_range_slice(builder, mine, parts, step, parts.type) as (part, _):
        status = call(
            builder, address, table, bound(part), bound(builder.add(part, ir.Constant(part.type, 1))), part, given
        )
        with cgutils.if_unlikely(builder, status.is_error):
            builder.store(ir.Constant(ir.IntType(1), 1), failed)
    builder.ret_void()
    return body


@functools.cache
def _team() -> np.ndarray:
    """Returns the addresses of three functions of torch's OpenMP: run a function in each thread of the team, give a
    thread's number, give the number of threads. They are 0 if torch brings another OpenMP, or none."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*")):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            functions = [getattr(library, name) for name in names]
        except (OSError, AttributeError):
            continue
        return np.array([ctypes.cast(function, ctypes.c_void_p).value for function in functions], dtype=np.int64)
    return np.zeros(3, dtype=np.int64)


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Makes one pool for each process, because threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="pocketcnn")
