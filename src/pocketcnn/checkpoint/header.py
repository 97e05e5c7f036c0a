"""The header of a model file: the JSON that describes the net, read without its tensors."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pocketcnn.errors import BrokenFile, ForeignFile, NewerFormat
from pocketcnn.support.files import refuse_exported, write_atomically
from pocketcnn.support.runs import MODEL

FORMAT, VERSION = "pocketcnn", 2
FILE = MODEL  # in the folder of a run, or of a repository


def file_in(path: Path) -> Path:
    """The model file at a path, which is its own or its folder's."""
    return path / FILE if path.is_dir() else path


def read_header(path: str | Path) -> dict[str, Any]:
    """Reads the header of a model file: base, steps, frozen parameters, notes, version.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged.
        ForeignFile: not a safetensors file, or not written by `save`.
        NewerFormat: a newer version wrote the file.
        ExportedFile: the file was exported for serving.
    """
    path = file_in(Path(path))
    refuse_exported(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        if _looks_like_safetensors(path):
            raise BrokenFile(f"{path}: damaged or cut short ({error}); copy or train it again") from error
        raise ForeignFile(f"{path}: not a safetensors file ({error}); give a file written by pocketcnn.save") from error
    if FORMAT not in metadata:
        raise ForeignFile(
            f"{path}: a safetensors file, but not written by pocketcnn.save; build the net and load it there"
        )
    try:
        header = json.loads(metadata[FORMAT])
        if int(header["version"]) > VERSION:
            raise NewerFormat(
                f"{path}: format version {header['version']}, this pocketcnn reads up to {VERSION}; upgrade pocketcnn"
            )
        base = header["base"]
        complete = {"steps", "frozen", "notes"} <= header.keys() and (
            base is None or {"name", "options"} <= base.keys()
        )
        if not complete or not all({"method", "options", "sites"} <= step.keys() for step in header["steps"]):
            raise KeyError("an entry is missing")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenFile(f"{path}: its description of the net is damaged ({error}); copy or train it again") from error
    return header


def replace_notes_(path: Path, notes: dict[str, Any]) -> None:
    """Replaces the notes in a model file; the rest of its header and the bytes of its tensors stay as they are."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    metadata = header["__metadata__"]
    metadata[FORMAT] = json.dumps({**json.loads(metadata[FORMAT]), "notes": notes})
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the tensors begin at a multiple of 8
    write_atomically(path, struct.pack("<Q", len(head)) + head + content[start:])


def _looks_like_safetensors(path: Path) -> bool:
    """Returns True if a file is empty or begins as the format does: 8 bytes of length, then a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 0 or (len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 32)
