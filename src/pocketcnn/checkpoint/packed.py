"""Packed model files: header and tensors coded together, in one tensor of bytes, without loss.

A packed file is a `.safetensors` whose only tensor, `packed`, is a MessagePack list: the length of the description, the
description, and a stream for each type of number. The description is JSON: the header of an ordinary file and, for each tensor in
the order of the net, a letter for its type. Names and shapes are not stored, because the net that the header describes has them;
a hash of them tells whether it does.
Tensors of one type lie one after the other, those of one name in the modules together: norms' variances are more like each
other than like kernels. `pocketcnn.checkpoint.coding` says how numbers are coded.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pocketcnn.checkpoint.coding import expand, read_numbers, read_values, squeeze, write_numbers, write_values
from pocketcnn.checkpoint.sealed import AGAIN, Head, TensorEntry
from pocketcnn.cost import distinct_tensors
from pocketcnn.errors import BrokenFile, CannotWrite
from pocketcnn.support.protocols import CodesNumbers
from pocketcnn.support.schema import parse_json, shaped

TENSOR = "packed"
VERSION = 3  # of the format; ordinary files keep an older one
_LONGEST = 8 << 20  # bytes of a description
_DEEPEST = 32  # times the length of a file, and 64 kB: the longest description that it may have
_MOST, _SPARE = 256, 1 << 20  # a net takes at most so many times the bytes of its file, and so many more
_NUMBERS = "#"  # letter of whole numbers below a limit that the net knows
_TYPES = {
    "f": ("F32", torch.float32), "h": ("F16", torch.float16), "b": ("BF16", torch.bfloat16), "d": ("F64", torch.float64),
    "l": ("I64", torch.int64), "i": ("I32", torch.int32), "s": ("I16", torch.int16), "c": ("I8", torch.int8),
    "u": ("U8", torch.uint8), "?": ("BOOL", torch.bool), "z": ("C64", torch.complex64), "w": ("U16", torch.uint16),
    "v": ("U32", torch.uint32), "x": ("U64", torch.uint64),
}  # fmt: skip
_LETTERS = {dtype: letter for letter, (_, dtype) in _TYPES.items()}
_SMALL = {"1": (-1, 1), "2": (-2, 1), "4": (-8, 7), "8": (-128, 127)}
"""Letters of int8 numbers by the range they lie in: a small one after training for few bits."""


class _Blob(msgspec.Struct, array_like=True):
    """The content of the tensor: the length of the description, the description, the streams by the order of their letters."""

    length: Annotated[int, msgspec.Meta(ge=0, le=_LONGEST)]
    description: bytes
    streams: list[bytes]


@dataclasses.dataclass(frozen=True)
class _Description:
    """What is stored beside the streams.

    `more` are the lengths of tensors of one axis that are not those of the net; `names` is a hash of the net's tensors.
    """

    header: dict[str, Any]
    types: str
    more: dict[str, Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]]
    names: str

    def text(self) -> bytes:
        """The description as JSON, in ASCII."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()


@dataclasses.dataclass(frozen=True)
class Packed:
    """The opened content of a packed file."""

    path: Path
    blob: _Blob
    description: _Description

    @property
    def header(self) -> dict[str, Any]:
        """The header, as an ordinary file has it."""
        return self.description.header

    def laid_out(self, model: nn.Module, head: Head) -> Head:
        """The head that an ordinary file with these tensors would have.

        Args:
            model: the net that the header describes; it may be on the meta device.
            head: the file's own.
        Raises:
            BrokenFile: the tensors do not fit the net, or take far more memory than the file.
        """
        entries = {name: TensorEntry(_TYPES[letter][0], shape) for name, letter, shape in self._tensors(model)}
        total = sum(entry.nbytes for entry in entries.values())
        if total > _SPARE + _MOST * self.path.stat().st_size:
            raise BrokenFile(f"{self.path}: describes a net of {total:,} bytes, far more than it can hold; {AGAIN}")
        return dataclasses.replace(head, tensors=entries)

    def _tensors(self, model: nn.Module) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yields name, letter of the stored type and shape of each tensor; numbers below a limit have the type they stand for."""
        wanted = distinct_tensors(model)
        names = [*wanted, *(name for name in self.description.more if name not in wanted)]
        types = self.description.types
        numbered = {name for name, letter in zip(names, types, strict=False) if letter == _NUMBERS}
        if self.description.names != _hash_of(wanted) or not numbered <= wanted.keys():
            raise BrokenFile(
                f"{self.path}: its tensors do not fit {type(model).__name__}: they have other names or shapes; was the net changed "
                "after condense, or is base another net?"
            )
        if len(names) != len(types) or set(types) - {*_TYPES, *_SMALL, _NUMBERS}:
            raise BrokenFile(
                f"{self.path}: its {len(types)} tensors do not fit {type(model).__name__}, which has {len(names)}; was the net "
                "changed after condense?"
            )
        for name, letter in zip(names, types, strict=True):
            length = self.description.more.get(name)
            shape = tuple(wanted[name].shape) if length is None else (length,)
            stands_for = _LETTERS[wanted[name].dtype] if letter == _NUMBERS else "c" if letter in _SMALL else letter
            yield name, stands_for, shape

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Decodes the tensors, by name, in the order of the net.

        Raises:
            BrokenFile: they do not fit the net, or are damaged.
        """
        shapes = {name: shape for name, _, shape in self._tensors(model)}
        letters = dict(zip(shapes, self.description.types, strict=True))
        found: dict[str, Tensor] = {}
        try:
            streams = iter(self.blob.streams)
            for lane in _lanes(letters):
                stream, letter = next(streams), letters[lane[0]]
                counts = [torch.Size(shapes[name]).numel() for name in lane]
                if letter == _NUMBERS:
                    owner, own, limit = _coder(model, lane[0])
                    values = owner.stored_of(own, read_numbers(stream, shapes[lane[0]][0], limit))
                elif letter in _SMALL:
                    low, high = _SMALL[letter]
                    values = (read_numbers(stream, sum(counts), high - low + 1) + low).to(torch.int8)
                else:
                    values = read_values(stream, sum(counts), _TYPES[letter][1])
                parts = [values] if letter == _NUMBERS else values.split(counts)
                found |= {name: part.view(shapes[name]) for name, part in zip(lane, parts, strict=True)}
            if next(streams, None) is not None:
                raise ValueError("a stream is left over")
        except StopIteration:
            raise BrokenFile(f"{self.path}: cut off, a stream of its tensors is missing; {AGAIN}") from None
        except (ValueError, RuntimeError) as error:
            raise BrokenFile(f"{self.path}: its tensors are damaged: {error}; {AGAIN}") from error
        return {name: found[name] for name in shapes}

    def with_header(self, header: Mapping[str, Any]) -> bytes:
        """The content of the same file with another header, as safetensors writes it."""
        return serialized(dataclasses.replace(self.description, header=dict(header)), self.blob.streams)

    def ledger(self, model: nn.Module) -> dict[str, int]:
        """The bytes that each tensor takes, its share of the bytes of its stream, and the description's."""
        shapes = {name: shape for name, _, shape in self._tensors(model)}
        lanes = _lanes(dict(zip(shapes, self.description.types, strict=True)))
        if len(lanes) != len(self.blob.streams):
            raise BrokenFile(f"{self.path}: cut off, {len(self.blob.streams)} streams for {len(lanes)}; {AGAIN}")
        found: dict[str, int] = {}
        for lane, stream in zip(lanes, self.blob.streams, strict=True):
            left, total = len(stream), sum(torch.Size(shapes[name]).numel() for name in lane)
            for name in lane:
                count = torch.Size(shapes[name]).numel()
                found[name] = round(left * count / total) if total else 0
                left, total = left - found[name], total - count
        return found


def is_packed(metadata: str) -> bool:
    """Tells from the metadata of a file whether it is packed."""
    return metadata == outer()


def outer() -> str:
    """The metadata of every packed file: enough for older versions to say that they do not know the format."""
    return json.dumps({"format": "pocketcnn", "version": VERSION}, separators=(",", ":"))


def open_packed(path: Path, head: Head) -> Packed:
    """Reads the description of a packed file, and its streams as they are.

    Raises:
        BrokenFile: the content is damaged.
    """
    with open(path, "rb") as file:
        file.seek(head.start)
        content = file.read()
    where = f"{path}: its description of the net is damaged"
    try:
        blob = msgspec.msgpack.decode(content, type=_Blob)
        if blob.length > (1 << 16) + _DEEPEST * len(content):
            raise ValueError(f"{blob.length:,} bytes of description in a file of {len(content):,}")
        text = expand(blob.description, blob.length)
    except (msgspec.DecodeError, ValueError) as error:
        raise BrokenFile(f"{where} ({error}); {AGAIN}") from error
    return Packed(path, blob, shaped(parse_json(text, where, remedy=AGAIN), _Description, where, remedy=AGAIN))


def pack_file(header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> bytes:
    """Packs a header and tensors into the content of a file, as safetensors writes it.

    Args:
        header: of the file.
        tensors: to store, those of the net and others of one axis.
        model: the net.
    Raises:
        CannotWrite: a type of tensor that no packed file holds, or a net that packs to less than a 256th.
    """
    wanted = distinct_tensors(model)
    ordered = {name: tensors[name] for name in (*wanted, *(name for name in tensors if name not in wanted))}
    if odd := next((name for name, tensor in ordered.items() if tensor.dtype not in _LETTERS), None):
        raise CannotWrite(f"{odd} is of {ordered[odd].dtype}, which no packed file holds; save without packed")
    modules = dict(model.named_modules())
    numbers = {name: _as_numbers(modules, name, tensor) for name, tensor in ordered.items()}
    letters = {name: _letter_of(t) if numbers[name] is None else _NUMBERS for name, t in ordered.items()}
    streams = []
    for lane in _lanes(letters):
        letter, known = letters[lane[0]], numbers[lane[0]]
        values = torch.cat([ordered[name].detach().cpu().flatten() for name in lane])
        if known is not None:
            streams.append(write_numbers(*known))
        elif letter in _SMALL:
            low, high = _SMALL[letter]
            streams.append(write_numbers(values.long() - low, high - low + 1))
        else:
            streams.append(write_values(values))
    more = {
        name: len(tensor)
        for name, tensor in ordered.items()
        if name not in wanted or tensor.shape != wanted[name].shape
    }
    content = serialized(_Description(dict(header), "".join(letters.values()), more, _hash_of(wanted)), streams)
    if (total := sum(tensor.nbytes for tensor in ordered.values())) > _SPARE + _MOST * len(content):
        raise CannotWrite(
            f"{total:,} bytes of nearly equal numbers pack to {len(content):,}, which load would not believe; save without packed"
        )
    return content


def _letter_of(tensor: Tensor) -> str:
    """The letter of a tensor's type; of numbers in int8 that lie close together, that of the least range that holds them."""
    if tensor.dtype == torch.int8 and tensor.numel():
        least, most = int(tensor.min()), int(tensor.max())
        return next(letter for letter, (low, high) in _SMALL.items() if low <= least and most <= high)
    return _LETTERS[tensor.dtype]


def _hash_of(wanted: Mapping[str, Tensor]) -> str:
    """Tells nets apart by the names and the shapes of their tensors, in order."""
    text = json.dumps([[name, list(tensor.shape)] for name, tensor in wanted.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def serialized(description: _Description, streams: list[bytes]) -> bytes:
    """The content of a packed file, as safetensors writes it."""
    text = description.text()
    blob = msgspec.msgpack.encode(_Blob(len(text), squeeze(text), streams))
    return serialize({TENSOR: torch.frombuffer(bytearray(blob), dtype=torch.uint8)})


def _lanes(letters: Mapping[str, str]) -> list[list[str]]:
    """The names of the tensors in each stream: of one type, those of one name in the modules together; numbers by themselves."""
    lanes: dict[str, list[str]] = {}
    for name, letter in letters.items():
        lanes.setdefault(letter + name if letter == _NUMBERS else letter, []).append(name)
    return [sorted(lanes[key], key=lambda name: name.rpartition(".")[2]) for key in sorted(lanes)]


def _coder(model: nn.Module, name: str) -> tuple[CodesNumbers, str, int]:
    """The module that knows a tensor as numbers, the tensor's name there, and the limit of the numbers."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    if not isinstance(owner, CodesNumbers) or (limit := owner.limit_of(own)) is None:
        raise ValueError(f"{name} is stored as numbers below a limit, and the net knows none")
    return owner, own, limit


def _as_numbers(modules: Mapping[str, nn.Module], name: str, stored: Tensor) -> tuple[Tensor, int] | None:
    """A tensor as numbers below a limit, if the module that holds it knows a way that loses nothing."""
    path, _, own = name.rpartition(".")
    owner = modules.get(path)
    if not isinstance(owner, CodesNumbers) or (limit := owner.limit_of(own)) is None:
        return None
    numbers = owner.numbers_of(own, stored)
    return (numbers, limit) if owner.stored_of(own, numbers).equal(stored) else None
