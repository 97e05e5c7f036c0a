"""What was read as what, and what was left out: the record that a data set carries and `pocketcnn data` shows."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Part:
    """A split, the folder or files it was read from, and its number of images there."""

    split: str
    place: str
    images: int


@dataclass(frozen=True)
class LeftOut:
    """Entries that were not read for one reason, with the path of the first. `is_data` tells what may be missed."""

    reason: str
    count: int
    example: str
    is_data: bool = True


@dataclass(frozen=True)
class Found:
    """Splits with their places, columns, entries left out, and lines that say how something was read.

    `doubts` are the lines about places that have a second reading; `notes` are the others. `bits` are those that pixels of
    16 bits were found to use; None if there are no such pixels, or the user said it.
    """

    parts: tuple[Part, ...] = ()
    columns: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    bits: int | None = None

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.parts + other.parts,
            self.columns + other.columns,
            self.left_out + other.left_out,
            self.notes + other.notes,
            self.doubts + other.doubts,
            self.bits or other.bits,
        )


NOTHING = Found()


@dataclass
class Tally:
    """Counts entries below `root` by the reason for which they are left out."""

    root: Path
    entries: dict[str, LeftOut] = field(default_factory=dict)

    def add(self, reason: str, example: Path, *, count: int = 1, is_data: bool = True) -> None:
        """Counts entries of one reason; the first one stays the example."""
        name = os.path.relpath(example, self.root) if example.is_relative_to(self.root) else example
        before = self.entries.get(reason, LeftOut(reason, 0, printable(name), is_data))
        self.entries[reason] = LeftOut(reason, before.count + count, before.example, before.is_data or is_data)

    def below(self, folder: Path) -> str:
        """Words for reasons whose example is a folder or lies in it."""
        inside = printable(os.path.relpath(folder, self.root))
        return in_words(tuple(entry for entry in self.all() if f"{entry.example}/".startswith(f"{inside}/")))

    def all(self) -> tuple[LeftOut, ...]:
        """The entries, those first that may be missed."""
        return tuple(sorted(self.entries.values(), key=lambda entry: not entry.is_data))


def in_words(left_out: tuple[LeftOut, ...]) -> str:
    """One line that names every reason, its count and one example."""
    return "; ".join(f"{entry.reason}: {entry.count:,} ({entry.example})" for entry in left_out)


def log_found(name: str, found: Found) -> None:
    """Logs how ambiguous places were read, and in one line what was left out: a warning if images may be missed."""
    for note in found.notes:
        _log.info("%s: %s", name, note)
    for doubt in found.doubts:
        _log.warning("%s: %s", name, doubt)
    if found.left_out:
        level = logging.WARNING if any(entry.is_data for entry in found.left_out) else logging.INFO
        _log.log(level, "%s: left out: %s", name, in_words(found.left_out))


def printable(name: str | Path) -> str:
    """A file's name on one line: line ends, control characters and bytes that are no UTF-8 appear as escapes."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(name))
