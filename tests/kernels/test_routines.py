"""Compiled functions that call each other by address."""

import logging
import runpy

import numpy as np
import pytest

numba = pytest.importorskip("numba")
from pocketcnn.kernels._routines import KINDS, WHOLE, Routines, call, launcher  # noqa: E402
from pocketcnn.kernels._threads import fork, share  # noqa: E402

sums = Routines("sums of a test")


@sums.routine(lambda k: (k.memory, WHOLE, WHOLE))
def _add(table, numbers, place, amount):
    numbers[place] += amount


@sums.routine(lambda k: (WHOLE, WHOLE, WHOLE, k.memory))
def add_all(table, first, last, part, numbers):
    """Adds 1 to some numbers, and counts the call of each part in the last place."""
    for place in range(first, last):
        call(_add, table, (numbers, place, 1))


@launcher
def run(team, table, parts, first, last, part, *arguments):
    fork(add_all, team, table, parts, first, last, part, arguments)


def table(dtype):
    return sums.table(add_all, np.dtype(dtype), np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_every_piece_is_done_once(dtype, count):
    numbers = np.zeros(count, dtype=dtype)
    share(run, table(dtype), count, 2**20, numbers)
    assert (numbers == 1).all()


def test_a_table_holds_a_routine_and_those_that_it_calls():
    assert sums.called_by(add_all) == [add_all, _add]
    assert sums.called_by(_add) == [_add]
    both, alone = table("float32"), sums.table(_add, np.dtype("float32"), np.dtype("float32"))
    assert both.all()
    assert alone.tolist() == [both[0], 0]


def test_one_line_says_what_is_compiled(tmp_path, caplog):
    """In a file that numba has never seen, so that nothing of it is kept."""
    (tmp_path / "squares.py").write_text(
        "from pocketcnn.kernels._routines import Routines\n"
        "squares = Routines('squares of a test')\n"
        "@squares.routine(lambda k: (k.memory,))\n"
        "def square(table, numbers):\n"
        "    numbers[0] *= numbers[0]\n"
    )
    made = runpy.run_path(str(tmp_path / "squares.py"))
    with caplog.at_level(logging.WARNING, logger="pocketcnn"):
        for number in ("float32", "float64"):
            for _ in range(2):
                made["squares"].table(made["square"], np.dtype(number), np.dtype(number))
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ["compiling squares of a test for float32", "compiling squares of a test for float64"]


def test_other_types_are_refused_when_a_caller_is_compiled():
    with pytest.raises(numba.TypingError, match=r"add_all takes .*float32.*, not .*int32"):
        share(run, table("float32"), 1, 1, np.zeros(1, dtype="int32"))


def test_kinds_name_what_users_know():
    assert [str(kinds) for kinds in KINDS] == ["float32", "float64", "bfloat16"]
