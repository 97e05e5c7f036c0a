"""The header of a model file: the JSON that describes the net, read without its tensors.

Whatever reads a header reads it here, so that no entry is used before its type, range and depth of nesting are checked.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from pocketcnn.checkpoint import packed
from pocketcnn.checkpoint.sealed import AGAIN, Head, read_head, seal, verify
from pocketcnn.errors import BrokenFile, ForeignFile, NewerFormat
from pocketcnn.support.files import write_atomically
from pocketcnn.support.runs import MODEL
from pocketcnn.support.schema import parse_json, shaped
from pocketcnn.surgery import Step

FORMAT, VERSION = "pocketcnn", 2
FILE = MODEL  # in the folder of a run, or of a repository
LONGEST = 8 << 20  # bytes of a header
_DEEPEST = 4  # levels of nesting of a method's options
Word = Annotated[str, Meta(min_length=1, max_length=200)]
Name = Annotated[str, Meta(max_length=2000)]


@dataclass(frozen=True)
class BaseEntry:
    """The plain net: the arguments of `create_model`."""

    name: Word
    options: dict[str, Any]

    def __post_init__(self) -> None:
        _check_plain(self.options)


@dataclass(frozen=True)
class StepEntry:
    """A condensing step; or a condensed layer that the net's own class makes, with those options that the layer holds."""

    method: Word
    options: dict[str, Any]
    sites: Annotated[tuple[Name, ...], Meta(min_length=1)]
    part: Name = ""

    def __post_init__(self) -> None:
        _check_plain(self.options)
        seed = self.options.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise ValueError(f"the seed {seed!r} is no whole number in [0, 2**64)")
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("a site is named twice")
        if self.part and not all(f"{site}.".startswith(f"{self.part}.") for site in self.sites):
            raise ValueError(f"a site lies outside of the part {self.part!r}")

    def step(self) -> Step:
        """The step as surgery takes it."""
        return Step(self.method, self.options, self.sites, self.part)


@dataclass(frozen=True)
class KeyEntry:
    """The salt, in hexadecimal, and the settings of scrypt with which a passphrase hides seeds."""

    salt: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{2}){1,64}$")]
    n: Annotated[int, Meta(ge=2, le=1 << 21)]
    r: Annotated[int, Meta(ge=1, le=1 << 10)]
    p: Annotated[int, Meta(ge=1, le=1 << 10)]

    def __post_init__(self) -> None:
        if self.n & (self.n - 1):
            raise ValueError(f"n must be a power of 2, not {self.n}")
        if self.n * self.r * self.p > 1 << 20:  # 128 MiB, half a second
            raise ValueError(f"n * r * p is {self.n * self.r * self.p:,}, which would take too much memory or time")


@dataclass(frozen=True)
class StorageEntry:
    """The type of the stored weights, the type they load in, and the names of those without their zeros."""

    weights: Word
    dtype: Word
    sparse: tuple[Name, ...]


@dataclass(frozen=True)
class Header:
    """The header: how the net is built, which parameters are frozen, notes, and how tensors and seeds are stored.

    `layers` are condensed layers that no step made; None in files of older versions, which did not write them down.
    """

    version: Annotated[int, Meta(ge=1)]
    base: BaseEntry | None
    steps: tuple[StepEntry, ...]
    frozen: tuple[Name, ...]
    notes: dict[str, Any]
    layers: tuple[StepEntry, ...] | None = None
    storage: StorageEntry | None = None
    key: KeyEntry | None = None


def file_in(path: Path) -> Path:
    """The model file at a path, which is its own or its folder's."""
    return path / FILE if path.is_dir() else path


def read_header(path: str | Path) -> dict[str, Any]:
    """Reads the header of a model file, and checks all of it: base, steps, frozen parameters, notes, version.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged; or an entry has a type or value that `save` never writes.
        ForeignFile: not a safetensors file, or not written by `save`.
        NewerFormat: a newer version wrote the file.
        ExportedFile: the file was exported for serving.
    """
    path = file_in(Path(path))
    return parse_header(read_head(path), path)[0]


def parse_header(head: Head, path: Path) -> tuple[dict[str, Any], Header]:
    """Parses the header in the head of a file, as JSON and typed; the errors are those of `read_header`."""
    if FORMAT not in head.metadata:
        raise ForeignFile(
            f"{path}: a safetensors file, but not written by pocketcnn.save; build the net and load it there"
        )
    text = head.metadata[FORMAT]
    if packed.is_packed(text):
        text = json.dumps(packed.open_packed(path, head).header)
    return check_header(text, path)


def check_header(text: str, path: Path) -> tuple[dict[str, Any], Header]:
    """Checks the text of a header, which is or will be that of a file.

    Raises:
        BrokenFile: not JSON; or an entry is missing, or has a type or value that it cannot have.
        NewerFormat: a newer version wrote it.
    """
    where = f"{path}: its description of the net is damaged"
    if len(text) > LONGEST:
        raise BrokenFile(f"{where}: {len(text):,} characters, more than {LONGEST:,}; {AGAIN}")
    content = parse_json(text, where, remedy=AGAIN)
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is int and version > packed.VERSION:
        raise NewerFormat(
            f"{path}: format version {version}, this pocketcnn reads up to {packed.VERSION}; upgrade pocketcnn"
        )
    header = shaped(content, Header, where, remedy=AGAIN)
    return {name: value for name, value in content.items() if value is not None or name == "base"}, header


def replace_notes_(path: Path, notes: dict[str, Any]) -> None:
    """Replaces the notes in a model file; the rest of its header and the bytes of its tensors stay as they are.

    The file gets a new checksum, also if it had none.

    Raises:
        BrokenFile: the file is damaged; or an error of `read_header`.
    """
    head = read_head(path)
    header, _ = parse_header(head, path)
    verify(path, head)
    text = json.dumps({**header, "notes": notes})
    check_header(text, path)
    if packed.is_packed(head.metadata[FORMAT]):
        content, text = packed.open_packed(path, head).with_header(json.loads(text)), packed.outer()
    else:
        content = path.read_bytes()
    write_atomically(path, seal(content, {FORMAT: text}))


def _check_plain(value: Any, depth: int = 0) -> None:
    """Checks that options hold no more than options can: finite numbers of 64 bits, short texts, flat containers."""
    if depth > _DEEPEST:
        raise ValueError("options are nested too deeply")
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_plain(name, depth + 1)
            _check_plain(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_plain(entry, depth + 1)
    elif isinstance(value, str) and len(value) > 2000:
        raise ValueError(f"an option has {len(value):,} characters")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("an option is a whole number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"an option is {value}")
