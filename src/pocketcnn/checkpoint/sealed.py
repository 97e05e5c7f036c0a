"""The bytes of a model file: its head (names, types, shapes, metadata), its tensors, and a checksum of both.

The checksum is a SHA-256 in the metadata. It covers the head without the checksum itself, as JSON with sorted keys, and all
bytes after the head. It finds damage, not malice: whoever changes a file can write another checksum, or remove it, and the
file then counts as one of an older version, which wrote none. The zoo's index holds hashes of whole files for that.
"""

import hashlib
import json
import logging
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from pocketcnn.errors import BrokenFile, ForeignFile
from pocketcnn.support.files import refuse_exported
from pocketcnn.support.schema import parse_json, shaped

CHECKSUM = "pocketcnn.sha256"  # its name in the metadata
AGAIN = "copy or train it again"  # the remedy for damaged files
_LONGEST_HEAD = 16 << 20  # bytes; that of a net with a thousand layers takes 0.2 MB
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in the head: its type as safetensors names it (`F32`), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        bits = re.sub(r"\D", "", self.dtype.partition("_")[0])
        return math.prod(self.shape) * (int(bits) if bits else 8) // 8


@dataclass(frozen=True)
class Head:
    """The head of a safetensors file: metadata, tensors by name, and the offset of the first tensor's bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    start: int
    content: Mapping[str, Any]  # the JSON as it is

    @property
    def checksum(self) -> str | None:
        """The checksum that the file holds; None in files of older versions."""
        return self.metadata.get(CHECKSUM)


def read_head(path: Path) -> Head:
    """Reads the head of a safetensors file; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged.
        ForeignFile: not a safetensors file.
        ExportedFile: the file was exported for serving.
    """
    refuse_exported(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    with open(path, "rb") as file:
        first = file.read(9)
    length = struct.unpack("<Q", first[:8])[0] if len(first) == 9 else 0
    ours = len(first) == 0 or (first[8:] == b"{" and length < 1 << 32)
    if ours and length > _LONGEST_HEAD:
        raise BrokenFile(f"{path}: its head has {length:,} bytes, more than {_LONGEST_HEAD:,}; {AGAIN}")
    try:
        with safe_open(path, framework="pt"):  # checks types, shapes and offsets
            pass
    except SafetensorError as error:
        if ours:
            raise BrokenFile(f"{path}: damaged or cut short ({error}); {AGAIN}") from error
        raise ForeignFile(f"{path}: not a safetensors file ({error}); give a file written by pocketcnn.save") from error
    with open(path, "rb") as file:
        content = parse_json(file.read(8 + length)[8:], str(path), remedy=AGAIN)
    metadata = shaped(content.get("__metadata__") or {}, dict[str, str], str(path), remedy=AGAIN)
    tensors = {name: entry for name, entry in content.items() if name != "__metadata__"}
    return Head(metadata, msgspec.convert(tensors, dict[str, TensorEntry]), 8 + length, content)


def seal(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Puts metadata and the checksum into a safetensors file; other metadata are removed.

    Args:
        content: the whole file, as safetensors writes it or as `seal` returned it.
        metadata: texts by name.
    """
    start = 8 + struct.unpack("<Q", content[:8])[0]
    tensors = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    rest = memoryview(content)[start:]
    digest = _digest({"__metadata__": dict(metadata), **tensors})
    digest.update(rest)
    head = json.dumps(
        {"__metadata__": {**metadata, CHECKSUM: digest.hexdigest()}, **tensors}, separators=(",", ":")
    ).encode()
    head += b" " * (-len(head) % 8)  # the tensors begin at a multiple of 8
    return b"".join((struct.pack("<Q", len(head)), head, rest))


def verify(path: Path, head: Head) -> None:
    """Compares a file with the checksum in it; a file without one is logged, once.

    Raises:
        BrokenFile: the checksum differs.
    """
    if head.checksum is None:
        return _say_unsealed(path)
    with open(path, "rb") as file:
        file.seek(head.start)
        found = hashlib.file_digest(file, lambda: _digest(head.content)).hexdigest()
    if found != head.checksum:
        raise BrokenFile(
            f"{path}: its checksum differs: the file says {head.checksum[:12]!r}, its tensors and description give "
            f"{found[:12]!r}, so it was damaged or changed after it was written; {AGAIN}"
        )


def _digest(content: Mapping[str, Any]) -> Any:
    """Begins a checksum with the JSON of a head."""
    metadata = {name: text for name, text in content.get("__metadata__", {}).items() if name != CHECKSUM}
    text = json.dumps({**content, "__metadata__": metadata}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode())


@cache
def _say_unsealed(path: Path) -> None:
    _log.info("%s has no checksum, as files of older versions have none; damage to its weights cannot be noticed", path)
