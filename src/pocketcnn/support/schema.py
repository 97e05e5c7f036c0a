"""Shapes of what files hold: a typed dataclass says what a file's JSON must be, and `shaped` holds it against that."""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pocketcnn.errors import BrokenFile, ForeignFile

Kind = TypeVar("Kind")


def shaped(content: Any, kind: type[Kind], where: str, *, error: type[Exception] = BrokenFile, remedy: str) -> Kind:
    """Turns what JSON holds into a typed value, if it has the type's shape.

    Args:
        content: what JSON gives: dicts, lists, strings, numbers, True, False, None.
        kind: the type that it must have, for example a dataclass whose fields are annotated, with bounds as
            `Annotated[int, msgspec.Meta(ge=0, le=100)]`. Entries that the dataclass does not name are left out.
        where: name of the file or entry, for the message.
        error: class of the exception.
        remedy: end of the message: what the user can do.
    Raises:
        BrokenFile: an entry is missing, has another type or is out of range; or another `error`.
    """
    try:
        return msgspec.convert(content, kind, strict=True)
    except (msgspec.ValidationError, RecursionError, UnicodeEncodeError) as problem:  # the last: half a surrogate pair
        raise error(f"{where}: {_in_words(problem)}; {remedy}") from problem


def parse_json(text: str | bytes, where: str, *, remedy: str) -> Any:
    """Parses JSON text. NaN and infinite numbers are read as Python's `json` writes them.

    Raises:
        BrokenFile: the text is not JSON, is not UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise BrokenFile(f"{where}: not readable as JSON ({_in_words(problem)}); {remedy}") from problem


def read_shaped(path: Path, kind: type[Kind], *, remedy: str, most_bytes: int = 64 << 20) -> Kind:
    """Reads a JSON file whose content must have a type's shape, see `shaped`.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: not JSON; or an entry is missing, has another type or is out of range.
        ForeignFile: not a plain file, or longer than `most_bytes`, as no file of this package is.
    """
    if path.exists() and not path.is_file():
        raise ForeignFile(f"{path}: not a plain file; {remedy}")
    if (length := path.stat().st_size) > most_bytes:
        raise ForeignFile(
            f"{path}: {length:,} bytes, but no such file of this package exceeds {most_bytes:,}; {remedy}"
        )
    return shaped(parse_json(path.read_bytes(), str(path), remedy=remedy), kind, str(path), remedy=remedy)


def _in_words(problem: Exception) -> str:
    """One line of what msgspec or json found wrong, with the entry's place as in `steps[0].sites`."""
    if isinstance(problem, RecursionError):
        return "nested too deeply"
    return str(problem).replace("`", "").replace("$.", "").replace(" - at ", " at ")
