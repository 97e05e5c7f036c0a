"""The walk of a folder of images: what is in it, and what is left out for which reason."""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketcnn.data.found import Found, Tally, printable
from pocketcnn.errors import BadData
from pocketcnn.support.optional import optional_import

_SYSTEM = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__",
}  # fmt: skip
# Formats that Pillow lists but does not decode by itself: stubs, films, documents, and PostScript, for which it starts
# another program.
_NO_PICTURES = {"BUFR", "GRIB", "HDF5", "WMF", "MPEG", "PDF", "EPS"}
_TEXTS = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".py", ".ipynb", ".sh", ".log", ".md5", ".sha256", ".names", ".pdf", ".bib", ".lock", ".bak", ".tmp",
}  # fmt: skip
_MOST_ENTRIES = 10_000_000
_AGAIN = "links to what is read already, or to a folder around it"


@dataclass(eq=False)
class Folder:
    """A folder: its image files, the names of its other files, its folders in order, and `total` images in and below."""

    path: Path
    images: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    total: int = 0

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def filled(self) -> list["Folder"]:
        """The folders that hold images, at any depth."""
        return [folder for folder in self.folders if folder.total]

    def everything(self) -> Iterator["Folder"]:
        """This folder and all below."""
        waiting = [self]
        while waiting:
            yield (folder := waiting.pop())
            waiting += folder.folders

    def all_images(self) -> list[Path]:
        """All image files in it and below, in order."""
        return sorted(file for folder in self.everything() for file in folder.images)


def image_suffixes() -> set[str]:
    """Suffixes, in lower case, of the image files that the installed Pillow decodes."""
    image = optional_import("PIL.Image", extra="train", purpose="decoding images")
    image.init()
    known: dict[str, str] = image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in image.OPEN and kind not in _NO_PICTURES}


def is_hidden(name: str) -> bool:
    """Tells a name that begins with a dot, or that an operating system or file server made for itself."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def image_files(folder: Path) -> tuple[list[Path], Found]:
    """All image files in a folder and below, in the order of their paths, and what was left out."""
    tally = Tally(folder)
    files = scan(folder, tally).all_images()
    return files, Found(left_out=tally.all())


def stats_of(files: Iterable[Path]) -> list[list[Any]]:
    """Path without links, size in bytes and time of change of each file."""
    folders: dict[Path, str] = {}  # resolving each file would ask for all folders above it
    found: list[list[Any]] = []
    for file in files:
        about, above = os.lstat(file), file.parent
        if stat.S_ISLNK(about.st_mode):
            about, path = os.stat(file), os.path.realpath(file)
        else:
            if above not in folders:
                folders[above] = os.path.realpath(above)
            path = os.path.join(folders[above], file.name)
        found.append([path, about.st_size, about.st_mtime_ns])
    return found


def scan(root: Path, tally: Tally) -> Folder:
    """Walks a folder without opening a file.

    Hidden entries, links that lead to what is read anyway, files of other suffixes, empty files, and whatever is no
    plain file are counted in `tally`. Links are followed after everything else is known, each folder once.

    Raises:
        BadData: the folder is a whole disk, a home or a system's, or has more than ten million entries.
    """
    _check_place(root)
    return _Walk(root, tally).run()


class _Walk:
    """One walk: folders seen, identities (device, inode) of what is read, and links that wait."""

    def __init__(self, root: Path, tally: Tally) -> None:
        self.top, self.tally, self.suffixes = Folder(root), tally, image_suffixes()
        real = root.resolve()
        self.known = {_identity(os.stat(place)) for place in (real, *real.parents)}
        self.parents: list[tuple[Folder, Folder]] = []
        self.links: deque[tuple[Folder, Path]] = deque()
        self.count = 0

    def run(self) -> Folder:
        self._read_all(self.top)
        while self.links:
            self._follow(*self.links.popleft())
        for folder in self.top.everything():
            folder.folders.sort(key=lambda inner: inner.path)
            folder.images.sort()
            folder.total = len(folder.images)
        for parent, folder in reversed(self.parents):  # each parent comes before its folders
            parent.total += folder.total
        return self.top

    def _read_all(self, first: Folder) -> None:
        waiting = deque([first])
        while waiting:
            waiting += self._read(waiting.popleft())

    def _read(self, folder: Folder) -> list[Folder]:
        """Lists one folder; returns the folders in it."""
        try:
            with os.scandir(folder.path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.tally.add(f"folders that cannot be read ({error.strerror})", folder.path)
            return []
        self.count += len(entries)
        if self.count > _MOST_ENTRIES:
            raise BadData(
                f"{printable(self.top.path)}: more than {_MOST_ENTRIES:,} entries; give the folder of one data set, "
                "or stream parquet files"
            )
        inner = []
        for entry in entries:
            path = folder.path / entry.name
            try:
                if is_hidden(entry.name):
                    self.tally.add("hidden or system entries", path, is_data=False)
                elif entry.is_symlink():
                    self.links.append((folder, path))
                elif not entry.is_dir(follow_symlinks=False):
                    self._take(folder, path, os.lstat(entry.path), is_link=False)
                elif self._is_new(os.stat(path)):
                    inner.append(self._enter(folder, path))
                else:
                    self.tally.add(_AGAIN, path)
            except OSError as error:
                self.tally.add(f"entries that cannot be read ({error.strerror})", path)
        return inner

    def _is_new(self, found: os.stat_result) -> bool:
        """Tells whether something is met for the first time, and remembers it."""
        identity = _identity(found)
        is_new = identity not in self.known
        self.known.add(identity)
        return is_new

    def _enter(self, folder: Folder, path: Path) -> Folder:
        folder.folders.append(inner := Folder(path))
        self.parents.append((folder, inner))
        return inner

    def _follow(self, folder: Folder, path: Path) -> None:
        """Reads what a link leads to, unless it is read anyway."""
        try:
            found = os.stat(path)
        except OSError as error:
            is_loop = error.errno == errno.ELOOP
            self.tally.add("links in a loop" if is_loop else f"links that cannot be followed ({error.strerror})", path)
            return
        if stat.S_ISDIR(found.st_mode):
            if self._is_new(found):
                self._read_all(self._enter(folder, path))
            else:
                self.tally.add(_AGAIN, path)
        elif _identity(found) in self.known:
            self.tally.add(_AGAIN, path)
        else:
            self._take(folder, path, found, is_link=True)

    def _take(self, folder: Folder, path: Path, found: os.stat_result, *, is_link: bool) -> None:
        """Sorts a file: an image, or left out."""
        suffix = path.suffix.lower()
        if not stat.S_ISREG(found.st_mode):
            self.tally.add("neither files nor folders (pipes, sockets, devices)", path)
        elif suffix not in self.suffixes:
            folder.others.append(path.name)
            is_data = suffix not in _TEXTS and not (suffix == "" and path.name.isupper())  # LICENSE, README
            what = f"files with suffix {printable(suffix)}" if suffix else "files without a suffix"
            self.tally.add(what, path, is_data=is_data)
        elif not found.st_size:
            self.tally.add("empty files of 0 bytes", path)
        else:
            folder.images.append(path)
            if not is_link:
                self.known.add(_identity(found))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_place(root: Path) -> None:
    """Checks that a folder is not a whole disk, a home, or a view of the system."""
    real = root.resolve()
    system = any(real.is_relative_to(place) for place in ("/proc", "/sys", "/dev")) and not real.is_relative_to(
        "/dev/shm"
    )
    with suppress(RuntimeError):  # of a user without a home
        system = system or Path.home().resolve().is_relative_to(real)
    if system or real == Path(real.anchor):
        raise BadData(
            f"{printable(root)}: a whole disk, a home or a folder of the system; give the folder of one data set, and put "
            "the images in a folder of their own"
        )
