"""Numbers in few bytes, without loss: in no more bits than they need, then by the codes of the standard library.

Bytes are kept as they are, or coded by DEFLATE (Huffman codes and repeats) or LZMA (an adaptive range coder), whichever
is shortest; a tag says which. Whole numbers below a limit are cut into digits that fill bytes: five numbers below 3 in
a byte, or two bytes for one number of 12 bits. Where most are equal, as zeros are in a pruned net, the lengths of their
runs are coded, and the others by themselves: random zeros take about 1 % more than their entropy. Of floating-point
numbers all lowest bytes come first, then the next ones: signs and exponents are much alike, and so are the lowest bytes
of numbers that were rounded.

Whoever decodes says how many numbers must come out, and no more memory is taken, whatever the bytes claim.
"""

import lzma
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

_RAW, _DEFLATE, _LZMA = range(3)  # tags
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)
_CONTEXTS = ((0, 0), (3, 0), (0, 2))  # of LZMA: bits of the byte before, and of the position, that a code may depend on
_DICTIONARY = 1 << 20  # bytes that LZMA looks back, and about what it takes to decode
_LONGEST = 1 << 31
_AT_ONCE = 1 << 14  # numbers that are cut into bits together, a multiple of 8, so that this takes little memory
_SAMPLE, _SAMPLED = 1 << 18, 1 << 20  # bytes that tell which code is shortest for more bytes than these


def squeeze(data: bytes) -> bytes:
    """Encodes bytes in the shortest way that is known here; of more than a megabyte a sample tells which way that is.

    Cost: for numbers that look random about 0.3 s a megabyte.

    Example:
        >>> expand(squeeze(b"a" * 1000), 1000) == b"a" * 1000, len(squeeze(b"a" * 1000)) < 20
        (True, True)
    """
    sample = data if len(data) <= _SAMPLED else data[: _SAMPLE // 2] + data[-_SAMPLE // 2 :]
    lengths = [len(code(sample)) for code in _CODES]
    return _CODES[lengths.index(min(lengths))](data)


def _deflated(strategy: int, data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return bytes([_DEFLATE]) + coder.compress(data) + coder.flush()


def _by_lzma(context: int, position: int, data: bytes) -> bytes:
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(context, position))
    return bytes([_LZMA, context + 16 * position]) + packed


_CODES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: bytes([_RAW]) + data,
    *(partial(_deflated, strategy) for strategy in _STRATEGIES),
    *(partial(_by_lzma, *contexts) for contexts in _CONTEXTS),
)


def expand(stored: bytes, length: int) -> bytes:
    """Decodes what `squeeze` made.

    Args:
        stored: the tag and the bytes.
        length: how many bytes must come out; no more memory is taken.
    Raises:
        ValueError: the bytes are damaged, or something else comes out.
    """
    tag, body = stored[:1], stored[1:]
    try:
        if tag == bytes([_RAW]):
            data, whole = body, True
        elif tag == bytes([_DEFLATE]):
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflater.decompress(body, length + 1)
            whole = inflater.eof and not inflater.unused_data
        elif tag == bytes([_LZMA]):
            position, context = divmod(body[0], 16)
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(context, position))
            data = unpacker.decompress(body[1:], length + 1)
            whole = unpacker.eof and not unpacker.unused_data
        else:
            raise ValueError("bytes of a code that is not known")
    except (zlib.error, lzma.LZMAError, IndexError, EOFError) as error:
        raise ValueError(f"bytes that cannot be decoded ({error})") from error
    if len(data) != length or not whole:
        raise ValueError(f"bytes that are cut off, or decode to others than the {length:,} that are due")
    return data


def _filters(context: int, position: int) -> list[dict[str, int]]:
    if not (0 <= context <= 4 and 0 <= position <= 4):
        raise ValueError("settings of LZMA that no file of ours has")
    return [{
        "id": lzma.FILTER_LZMA1, "dict_size": _DICTIONARY, "lc": context, "lp": 0, "pb": position, "mode": lzma.MODE_NORMAL,
        "nice_len": 273, "mf": lzma.MF_BT4, "depth": 0,
    }]  # fmt: skip


class _Digits:
    """Several small numbers in a byte, as the digits of a number to the base of the limit."""

    @staticmethod
    def takes(limit: int) -> bool:
        return limit <= 16

    @staticmethod
    def _share(limit: int) -> int:
        share = 1
        while max(2, limit) ** (share + 1) <= 256:
            share += 1
        return share

    def length(self, count: int, limit: int) -> int:
        return -(-count // self._share(limit))

    def write(self, values: np.ndarray, limit: int) -> bytes:
        share = self._share(limit)
        rows = np.pad(values, (0, -len(values) % share)).reshape(-1, share)
        return (rows * limit ** np.arange(share)).sum(1).astype(np.uint8).tobytes()

    def read(self, stored: np.ndarray, count: int, limit: int) -> np.ndarray:
        share = self._share(limit)
        return (stored.astype(np.int64)[:, None] // limit ** np.arange(share) % limit).reshape(-1)[:count]


class _Bits:
    """Numbers one after the other, each in as many bits as the limit needs, the lowest first."""

    @staticmethod
    def takes(limit: int) -> bool:
        return limit > 1

    def length(self, count: int, limit: int) -> int:
        return -(-count * _bits_of(limit) // 8)

    def write(self, values: np.ndarray, limit: int) -> bytes:
        places = np.arange(_bits_of(limit))
        parts = (values[first : first + _AT_ONCE, None] >> places & 1 for first in range(0, len(values), _AT_ONCE))
        return b"".join(np.packbits(part.astype(np.uint8), bitorder="little").tobytes() for part in parts)

    def read(self, stored: np.ndarray, count: int, limit: int) -> np.ndarray:
        bits, values = _bits_of(limit), np.empty(count, np.int64)
        for first in range(0, count, _AT_ONCE):
            part = values[first : first + _AT_ONCE]
            flags = np.unpackbits(stored[first * bits // 8 :], count=len(part) * bits, bitorder="little")
            part[:] = (flags.reshape(-1, bits).astype(np.int64) << np.arange(bits)).sum(1)
        return values


_FORMS: tuple[_Digits | _Bits, ...] = (_Digits(), _Bits())
_PLANES = len(_FORMS)  # the tag of numbers cut into bytes
_RUNS = _PLANES + 1  # the tag of numbers of which most are equal
_MANY = 0.25  # share of the numbers from which their runs are tried
_STEP = 255  # a run of so many goes on in the next byte


def _bits_of(limit: int) -> int:
    return (limit - 1).bit_length()


def write_numbers(numbers: Tensor, limit: int) -> bytes:
    """Encodes whole numbers from 0 to `limit - 1`, whichever way takes fewest bytes.

    Args:
        numbers: of any integer type, flat.
        limit: from 1 to 2**31.
    Raises:
        ValueError: a number or the limit is out of range.
    """
    values = numbers.detach().cpu().numpy().astype(np.int64)
    if not 1 <= limit <= _LONGEST or (len(values) and not 0 <= values.min() <= values.max() < limit):
        raise ValueError(f"numbers below {limit} are due, from 0; there are others")
    usual, times = np.unique(values, return_counts=True)
    most = int(usual[times.argmax()]) if len(values) else 0
    found = [_in_forms(values, limit)]
    if len(values) and times.max() >= _MANY * len(values):
        found.append(_in_runs(values, most, limit))
    return min(found, key=len)


def _in_forms(values: np.ndarray, limit: int) -> bytes:
    found = [bytes([tag]) + squeeze(form.write(values, limit)) for tag, form in enumerate(_FORMS) if form.takes(limit)]
    width = max(1, -(-_bits_of(limit) // 8))
    found.append(bytes([_PLANES]) + _write_planes(values.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]))
    return min(found, key=len)


def _in_runs(values: np.ndarray, usual: int, limit: int) -> bytes:
    """Encodes the lengths of the runs of a usual number, and the other numbers."""
    others = np.flatnonzero(values != usual)
    runs = np.diff(others, prepend=-1) - 1
    steps = np.full(int((runs // _STEP + 1).sum()), _STEP, np.uint8)
    steps[np.cumsum(runs // _STEP + 1) - 1] = runs % _STEP
    coded = squeeze(steps.tobytes())
    parts = (_varint(usual), _varint(len(steps)), _varint(len(coded)), coded, _in_forms(values[others], limit))
    return bytes([_RUNS]) + b"".join(parts)


def read_numbers(stored: bytes, count: int, limit: int) -> Tensor:
    """Decodes what `write_numbers` made: int64, flat.

    Args:
        stored: the bytes.
        count: how many numbers must come out.
        limit: as it was.
    Raises:
        ValueError: the bytes are damaged, or a number is not below the limit.
    """
    values = _of_runs(stored[1:], count, limit) if stored[:1] == bytes([_RUNS]) else _of_forms(stored, count, limit)
    if len(values) and values.max() >= limit:
        raise ValueError(f"the number {values.max()} is not below {limit}")
    return torch.from_numpy(values)


def _of_forms(stored: bytes, count: int, limit: int) -> np.ndarray:
    tag = stored[0] if stored else 255
    if tag == _PLANES:
        wide = np.zeros((count, 8), np.uint8)
        width = max(1, -(-_bits_of(limit) // 8))
        wide[:, :width] = _read_planes(stored[1:], count, width)
        return wide.reshape(-1).view("<i8").astype(np.int64)
    if tag < len(_FORMS) and _FORMS[tag].takes(limit):
        form = _FORMS[tag]
        return form.read(np.frombuffer(expand(stored[1:], form.length(count, limit)), np.uint8), count, limit)
    raise ValueError("numbers in a form that is not known")


def _of_runs(stored: bytes, count: int, limit: int) -> np.ndarray:
    heads = []
    for _ in range(3):
        head, length = _read_varint(stored)
        heads.append(head)
        stored = stored[length:]
    usual, length, coded = heads
    if length > count + count // _STEP:
        raise ValueError(f"{length:,} runs in {count:,} numbers")
    steps = np.frombuffer(expand(stored[:coded], length), np.uint8)
    ends = steps < _STEP
    others = np.cumsum(steps + ends.view(np.uint8), dtype=np.int64)[ends] - 1
    if len(others) and others[-1] >= count:
        raise ValueError(f"runs that reach number {others[-1] + 1:,} of {count:,}")
    values = np.full(count, usual, np.int64)
    values[others] = _of_forms(stored[coded:], len(others), limit)
    return values


def write_values(values: Tensor) -> bytes:
    """Encodes numbers of any type, flat, bit for bit."""
    raw = values.detach().cpu().contiguous().view(torch.uint8).numpy()
    return _write_planes(raw.reshape(-1, values.element_size()))


def read_values(stored: bytes, count: int, dtype: torch.dtype) -> Tensor:
    """Decodes what `write_values` made: so many numbers of that type, flat.

    Raises:
        ValueError: the bytes are damaged.
    """
    width = torch.empty(0, dtype=dtype).element_size()
    rows = _read_planes(stored, count, width)
    return torch.from_numpy(rows.reshape(-1)).view(dtype) if count else torch.empty(0, dtype=dtype)


def _write_planes(rows: np.ndarray) -> bytes:
    """Encodes bytes [count, width]: each column by itself, before them but the last the length of its code."""
    columns = [squeeze(np.ascontiguousarray(rows[:, place]).tobytes()) for place in range(rows.shape[1])]
    return b"".join(_varint(len(column)) + column for column in columns[:-1]) + columns[-1]


def _read_planes(stored: bytes, count: int, width: int) -> np.ndarray:
    """Decodes what `_write_planes` made: bytes [count, width]."""
    rows = np.empty((count, width), np.uint8)
    for place in range(width):
        length, start = _read_varint(stored) if place < width - 1 else (len(stored), 0)
        column, stored = stored[start : start + length], stored[start + length :]
        rows[:, place] = np.frombuffer(expand(column, count), np.uint8)
    return rows


def _varint(number: int) -> bytes:
    """A whole number in as few bytes as it needs, seven bits in each, the lowest first."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _read_varint(stored: bytes) -> tuple[int, int]:
    """A number that `_varint` made, and its length."""
    number = 0
    for place, byte in enumerate(stored[:5]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, place + 1
    raise ValueError("bytes that are cut off")
