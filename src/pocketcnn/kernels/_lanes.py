"""A number of each of `LANES` planes, side by side in one register: what the compiled kernels compute with.

numba turns loops into vector instructions only where it can prove that nothing overlaps, which it cannot for a dozen arrays.
So vectors are a type of their own here, with loads, stores and arithmetic; a plane's channel is its lane. Numbers of 16 bits
are bfloat16, held as int16, and are widened on the way in and rounded to the nearest even on the way out.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

from pocketcnn.kernels._routines import compiled

LANES = 16  # of 32 bits: a cache line, and one register of AVX-512


class _Vector(types.Type):
    """`LANES` floating-point numbers."""

    def __init__(self, element: types.Type) -> None:
        super().__init__(name=f"Lanes({element})")
        self.element = element


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _kinds(vector.element, vector=True)[0])


def _pointer(context, builder, array, value, index, kind):
    """Emits a pointer to number `index` of a flat array, as a number or vector of that kind."""
    place = builder.gep(context.make_array(array)(context, builder, value).data, [index])
    return builder.bitcast(place, kind.as_pointer())


def _reader(vector: bool) -> Callable[..., Any]:
    def read(typing, array, index):
        number = types.float64 if array.dtype == types.float64 else types.float32
        result = _Vector(number) if vector else number

        def generate(context, builder, signature, arguments):
            wide, bits, half = _kinds(number, vector)
            kind = half if array.dtype == types.int16 else wide
            source, place = arguments
            pointer = _pointer(context, builder, signature.args[0], source, place, kind)
            found = builder.load(pointer, align=array.dtype.bitwidth // 8)
            if kind is wide:
                return found
            return builder.bitcast(builder.shl(builder.zext(found, bits), _each(bits, 16)), wide)

        return result(array, types.intp), generate

    return read


def _writer(vector: bool) -> Callable[..., Any]:
    def write(typing, array, index, value):
        def generate(context, builder, signature, arguments):
            target, place, given = arguments
            wide, bits, half = _kinds(value.element if vector else value, vector)
            narrow = array.dtype == types.int16
            pointer = _pointer(context, builder, signature.args[0], target, place, half if narrow else wide)
            if narrow:
                whole = builder.bitcast(given, bits)
                odd = builder.and_(builder.lshr(whole, _each(bits, 16)), _each(bits, 1))
                rounded = builder.add(whole, builder.add(odd, _each(bits, 0x7FFF)))
                # Rounding up could turn a NaN into a number.
                rounded = builder.select(builder.fcmp_ordered("==", given, given), rounded, _each(bits, 0x7FC00000))
                given = builder.trunc(builder.lshr(rounded, _each(bits, 16)), half)
            builder.store(given, pointer, align=array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, value), generate

    return write


def _kinds(number: types.Type, vector: bool) -> tuple[ir.Type, ir.Type, ir.Type]:
    """Returns three types: of the number (or a vector of them), and of integers of 32 and 16 bits."""
    kinds = (ir.DoubleType() if number == types.float64 else ir.FloatType(), ir.IntType(32), ir.IntType(16))
    return tuple(ir.VectorType(kind, LANES) for kind in kinds) if vector else kinds


def _each(kind: ir.Type, number: float) -> ir.Constant:
    return ir.Constant(kind, [number] * LANES if isinstance(kind, ir.VectorType) else number)


load = intrinsic(_reader(vector=True))
"""`load(array, index)`: `LANES` neighbours in a flat array, from `index` on."""
store = intrinsic(_writer(vector=True))
"""`store(array, index, value)`: puts `LANES` numbers side by side into a flat array, from `index` on."""
number_at = intrinsic(_reader(vector=False))
"""`number_at(array, index)`: one number of a flat array."""
put_number = intrinsic(_writer(vector=False))
"""`put_number(array, index, value)`: into a flat array."""


@intrinsic
def spread(typing, number):
    """The same number in every lane."""
    vector = _Vector(number)

    def generate(context, builder, signature, arguments):
        kind, bits, _ = _kinds(number, vector=True)
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _each(bits, 0))

    return vector(number), generate


def _binary(name: str) -> Callable[..., Any]:
    @intrinsic
    def apply(typing, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments, flags=("contract",))

        return (a(a, b), generate) if isinstance(a, _Vector) and a == b else None

    return apply


_add, _subtract, _multiply, _divide = map(_binary, ("fadd", "fsub", "fmul", "fdiv"))


def _operator(symbol: Callable[..., Any], apply: Callable[..., Any]) -> None:
    @overload(symbol, inline="never")
    def of_vectors(a, b):
        if isinstance(a, _Vector) and isinstance(b, _Vector):
            return lambda a, b: apply(a, b)
        return None


for _symbol, _apply in ((operator.add, _add), (operator.iadd, _add), (operator.sub, _subtract),
                        (operator.mul, _multiply), (operator.truediv, _divide)):  # fmt: skip
    _operator(_symbol, _apply)


@intrinsic
def total(typing, a):
    """The sum of all lanes."""

    def generate(context, builder, signature, arguments):
        found, half = arguments[0], LANES // 2
        while half:  # halves are added until one number is left
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(i + half) % LANES for i in range(LANES)])
            found = builder.fadd(found, builder.shuffle_vector(found, found, order), flags=("contract",))
            half //= 2
        return builder.extract_element(found, ir.Constant(ir.IntType(32), 0))

    return a.element(a), generate


@intrinsic
def larger(typing, a, b):
    """The larger of two numbers, lane by lane; the first where it is not a number, as after `torch.relu`."""

    def generate(context, builder, signature, arguments):
        first, second = arguments
        return builder.select(builder.fcmp_ordered(">", second, first), second, first)

    return a(a, b), generate


@intrinsic
def where_positive(typing, condition, value):
    """The value in lanes where the condition is above 0; 0 elsewhere."""

    def generate(context, builder, signature, arguments):
        above = builder.fcmp_ordered(">", arguments[0], _each(arguments[0].type, 0.0))
        return builder.select(above, arguments[1], _each(arguments[1].type, 0.0))

    return value(condition, value), generate


@compiled
def side_by_side(bases):
    """Tells whether the lanes' planes lie side by side in memory, as with channels last."""
    together = True
    for lane in range(1, LANES):
        together &= bases[lane] == bases[0] + lane
    return together


@compiled
def take(flat, strides, bases, count, box, memory, row):
    """Copies pixels of `count` planes, one for each lane, into a tile's memory.

    `bases` tells where in the flat array the planes begin, `strides` how far apart images, channels, lines and pixels are;
    `box` the height and width, where in the row of memory the first pixel goes, and how long a line is there.
    """
    height, width, first, pitch = box
    together = count == LANES and side_by_side(bases)
    for y in range(height):
        o = row + first + y * pitch
        if together:
            place = bases[0] + y * strides[2]
            for x in range(width):
                store(memory, o + x * LANES, load(flat, place + x * strides[3]))
        else:
            for lane in range(count):
                place = bases[lane] + y * strides[2]
                for x in range(width):
                    memory[o + x * LANES + lane] = number_at(flat, place + x * strides[3])


@compiled
def give(memory, row, count, flat, strides, bases, box):
    """Copies pixels from a tile's memory back into planes, the reverse of `take`."""
    height, width, first, pitch = box
    together = count == LANES and side_by_side(bases)
    for y in range(height):
        o = row + first + y * pitch
        if together:
            place = bases[0] + y * strides[2]
            for x in range(width):
                store(flat, place + x * strides[3], load(memory, o + x * LANES))
        else:
            for lane in range(count):
                place = bases[lane] + y * strides[2]
                for x in range(width):
                    put_number(flat, place + x * strides[3], memory[o + x * LANES + lane])


def flat_of(tensor: torch.Tensor) -> np.ndarray:
    """Views a tensor without gaps as a flat array, in the order of memory; bfloat16 appears as int16."""
    numbers = tensor.detach().as_strided((tensor.numel(),), (1,))
    return (numbers.view(torch.int16) if numbers.dtype == torch.bfloat16 else numbers).numpy()


def strides_of(tensor: torch.Tensor) -> np.ndarray:
    """Returns the distance in memory between neighbours along each axis."""
    return np.array(tensor.stride(), dtype=np.int64)
