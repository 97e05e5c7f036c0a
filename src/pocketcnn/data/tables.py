"""Tables of images: parquet files on this machine or of a repository on the hub, their splits, columns and rows.

What a row holds decides only which bytes are decoded: those in the file, or those of a file inside the data folder.
Nothing else is ever opened.
"""

import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pocketcnn.data.columns import Asked, Column, Meaning, chosen, columns_of, meaning_of
from pocketcnn.data.decode import CHUNK_BYTES, RawImage
from pocketcnn.data.found import NOTHING, Found, Part, Tally, printable
from pocketcnn.data.layout import kind_of
from pocketcnn.errors import BadData, PocketError
from pocketcnn.support.optional import optional_import

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_ARCHIVES = {"zip", "tar", "gzip", "bz2", "xz", "lzma", "zstd"}
_MOST_UNPACKED, _MOST_PACKING = 1 << 30, 100  # bytes that any table may unpack to, and the ratio for larger ones
_BATCH = 256  # rows that are read at a time
_ADVICE = "only bytes in the table and files in the data's own folder are read; write the images into the table"
_Find = Callable[[str, str], bytes | Path]  # the image that a path leads to; the row's place is for messages


@dataclass(frozen=True)
class Shard:
    """A parquet file of a split: its image column, its label column, and the rows of each of its row groups."""

    file: str
    image: Column
    label: Column
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """The shards of a data set by split, what their labels stand for, and where paths in them may lead."""

    splits: dict[str, list[Shard]]
    meaning: Meaning
    home: str

    @property
    def image(self) -> str:
        """The name of the image column."""
        return next(iter(self.splits.values()))[0].image.name

    @property
    def found(self) -> Found:
        """The splits with their numbers of files and rows, and the columns."""
        first = next(iter(self.splits.values()))[0]
        parts = (
            Part(
                split,
                f"{len(shards)} parquet file{'s' if len(shards) > 1 else ''}",
                sum(sum(shard.groups) for shard in shards),
            )
            for split, shards in self.splits.items()
        )
        names = "numbers with names" if first.label.names is not None else first.label.holds
        columns = (f"images: {first.image.name!r}", f"labels: {first.label.name!r} ({names})")
        return Found(tuple(parts), tuple(map(printable, columns)))

    def rows(self, split: str) -> Iterator[RawImage]:
        """Encoded images of a split with their labels.

        Raises:
            BadData: a damaged file, a label that is none, or a path that leads out of the data folder.
        """
        for shard in self.splits[split]:
            yield from _rows(shard, self.meaning, _finder(shard.file, self.home))

    def labels(self, split: str) -> list[Any]:
        """Labels of a split by row, None where there is none; no images are read.

        Raises:
            BadData: a damaged file, or a label that is neither a whole number nor a text.
        """
        found: list[Any] = []
        for shard in self.splits[split]:
            with opened(shard.file) as file:
                values = column_of(
                    file.read(columns=[shard.label.name], use_threads=False), shard.label.name
                ).to_pylist()
            if len(values) != sum(shard.groups):
                raise BadData(f"{shard.file}: {len(values)} labels for {sum(shard.groups)} rows; copy it again")
            found += [self.meaning.label(value, shard.label, shard.file, row) for row, value in enumerate(values)]
        return found


def open_table(
    name: str,
    files: Mapping[str, Sequence[str]],
    home: str,
    asked: Asked,
    metadata: Mapping[bytes, bytes] | None = None,
) -> Table:
    """Reads the schemas of all files of a data set, and finds its columns and classes.

    Args:
        name: of the data set, for messages.
        files: paths or addresses of the parquet files, by split.
        home: the folder that paths in the files may lead to; or the beginning of such an address on the hub.
        asked: columns that the user asks for.
        metadata: metadata for files that have none of Hugging Face.
    Raises:
        BadData: a damaged file, columns that differ or are missing, or labels whose classes cannot be told.
    """
    splits: dict[str, list[Shard]] = {}
    empty: list[str] = []
    for split, paths in files.items():
        for path in paths:
            shard = _shard(path, asked, metadata)
            if shard is None:
                empty.append(path)
            else:
                splits.setdefault(split, []).append(shard)
    if empty:
        _log.warning("%s: %d files without rows are left out; the first: %s", name, len(empty), empty[0])
    shards = [shard for split in sorted(splits, key=lambda split: split != "train") for shard in splits[split]]
    for shard in shards[1:]:
        for what in ("image", "label"):
            first, found = getattr(shards[0], what).name, getattr(shard, what).name
            if found != first:
                raise BadData(
                    f"{shard.file}: its {what} column is {found!r}, but that of {shards[0].file} is {first!r}; rename one, or "
                    f"name a column of both with --{what}-column ({what}_column=)"
                )
    labels = [(shard.file, shard.label) for shard in shards]
    count = len(splits.get("train", []))
    return Table(splits, meaning_of(labels[:count], labels[count:]), home)


def _shard(path: str, asked: Asked, metadata: Mapping[bytes, bytes] | None) -> Shard | None:
    """Reads the schema and the row counts of a file; None if it has no rows."""
    with opened(path) as file:
        counts = tuple(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
        if not sum(counts):
            return None
        _check_packing(path, file.metadata)
        return Shard(path, *chosen(columns_of(file.schema_arrow, path, metadata), path, asked), counts)


def _check_packing(path: str, metadata: Any) -> None:
    """Refuses a file that unpacks to far more than encoded images do, which hardly pack at all."""
    # The sizes of single columns are not asked for: arrow ends the whole process if their description is damaged.
    held = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    packed = held if "://" in path else os.path.getsize(path)
    if held > _MOST_UNPACKED and held > _MOST_PACKING * packed:
        raise BadData(f"{path}: {held:,} bytes, packed into {packed:,}, are no encoded images; write it again")


@contextmanager
def opened(path: str, rows: str = "") -> Iterator[Any]:
    """Opens a parquet file. Whatever goes wrong while it is open counts as its damage.

    Args:
        path: path of the file, or address on the hub.
        rows: which rows are read, for messages.
    Raises:
        BadData: it is no plain file, or not readable as parquet.
    """
    parquet = optional_import("pyarrow.parquet", extra="train", purpose="reading parquet files")
    try:
        if "://" in path:
            fsspec = optional_import("fsspec", extra="train", purpose="reading the hub")
            with fsspec.open(path, "rb") as source, parquet.ParquetFile(source) as file:
                yield file
        else:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError("it is no plain file")
            with parquet.ParquetFile(path) as file:
                yield file
    except PocketError:
        raise
    except Exception as error:  # parsers raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, NotImplementedError):
            raise BadData(
                f"{path}{rows and ' '}{rows}: arrow cannot read this ({reason}); write smaller row groups"
            ) from error
        what = f" {rows}: damaged or cut short" if rows else ": not readable as parquet"
        raise BadData(f"{path}{what} ({reason}); copy it again") from error


def column_of(table: Any, name: str) -> Any:
    """A column of a table or batch that was read by its name."""
    return table.column(table.schema.get_field_index(name))


def _rows(shard: Shard, meaning: Meaning, find: _Find) -> Iterator[RawImage]:
    """Encoded images of a file with their labels."""
    names = list(dict.fromkeys([shard.image.name, shard.label.name]))
    row = 0
    with opened(shard.file) as file:
        held = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
        size = max(1, min(_BATCH, CHUNK_BYTES * sum(shard.groups) // max(1, held)))
        for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
            cells, labels = (column_of(batch, column.name).to_pylist() for column in (shard.image, shard.label))
            for cell, value in zip(cells, labels, strict=True):
                label = meaning.label(value, shard.label, shard.file, row)
                yield raw_image(cell, f"{shard.file} row {row}", label, find)
                row += 1
    if row != sum(shard.groups):
        raise BadData(
            f"{shard.file}: {row} rows can be read, but it says that it has {sum(shard.groups)}; copy it again"
        )


def raw_image(cell: Any, where: str, label: Any, find: _Find) -> RawImage:
    """The encoded image of a table's cell.

    Args:
        cell: bytes of an encoded image, a struct of bytes and path, or a path.
        where: file and row, for messages.
        label: of the image.
        find: gives the image of a path.
    Raises:
        BadData: the cell holds something else, or its path leads out of the data folder.
    """
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, str):
        content, path, where = None, content, f"{where}, a text taken as a path"
    if isinstance(content, list) and all(isinstance(value, int) and 0 <= value < 256 for value in content):
        content = bytes(content)
    if isinstance(path, str) and path:
        where = f"{where} ({shown(path)})"
        content = find(path, where) if content is None else content
    if content is None or isinstance(content, bytes | Path):
        return RawImage(where, content, label)
    raise BadData(
        f"{where}: {type(content).__name__} instead of an image; write encoded images (PNG, JPEG, ...) as bytes, not pixels"
    )


def shown(path: str) -> str:
    """A path on one line, cut if it is long."""
    printed = printable(path)
    return printed if len(printed) <= 120 else f"{printed[:100]}..."


def split_files(root: Path, files: Sequence[Path], tally: Tally) -> tuple[dict[str, list[str]], Found]:
    """Sorts the parquet files of a folder by split, as the names of the files and their folders tell.

    If no name tells a split, all files are training files. Otherwise those without one are left out, and so are files
    in whose path below the folder a name begins with an underscore: Spark's marks and unfinished work.

    Returns:
        Absolute paths by split, in order; and how the names were read.
    Raises:
        BadData: a path tells two splits, or a split holds two files of one shard number.
    """
    by_split: dict[str | None, list[Path]] = {}
    for path in sorted(files):
        names = path.relative_to(root).parts
        if any(name.startswith("_") for name in names):
            tally.add("parquet files whose name or folder begins with an underscore", path)
            continue
        kinds = {kind for name in names if (kind := kind_of(name))}
        if len(kinds) > 1:
            raise BadData(
                f"{printable(path)}: its path tells two splits, {' and '.join(sorted(kinds))}; rename the file or its folder"
            )
        by_split.setdefault(kinds.pop() if kinds else None, []).append(path.absolute())
    nameless = by_split.pop(None, [])
    if not by_split:
        note = f"no name of {len(nameless)} parquet files tells a split, so that all hold training images"
        return {"train": list(map(str, nameless))}, Found(notes=(note,)) if len(nameless) > 1 else NOTHING
    if nameless:
        tally.add("parquet files whose path tells no split", nameless[0], count=len(nameless))
    notes = []
    if "evaluation" in by_split:
        if "test" in by_split:
            raise BadData(f"{printable(root)}: files are called both test and evaluation; rename or remove one kind")
        by_split["test"] = by_split.pop("evaluation")
        notes.append(f"{printable(by_split['test'][0])} belongs to the test split, as no file is called test")
    doubts: list[str] = []
    for split, paths in by_split.items():
        doubts += [*_places(str(split), root.absolute(), paths), *_missing_shards(str(split), paths)]
    order = [split for split in ("train", "test", "validation") if split in by_split]
    return {split: list(map(str, by_split[split])) for split in order}, Found(notes=tuple(notes), doubts=tuple(doubts))


def _places(split: str, root: Path, paths: Sequence[Path]) -> list[str]:
    """A line for a split whose files lie in several folders; refuses files that are called the same in two of them.

    Folders below the name that tells the split are parts of it, as Spark writes them.
    """
    first: dict[tuple[str, ...], Path] = {}
    folders: dict[str, None] = {}
    for path in paths:
        names = path.relative_to(root).parts
        told = next(place for place, name in enumerate(names) if kind_of(name))
        if (other := first.setdefault(names[told:], path)) != path:
            raise BadData(
                f"{printable(other)} and {printable(path)} are called the same, as of two data sets; give the folder of one"
            )
        folders[str(Path(*names[:told]))] = None
    if len(folders) < 2:
        return []
    return [
        f"files of the {split} split lie in several folders, which are read as one: {', '.join(map(printable, folders))}"
    ]


def _missing_shards(split: str, paths: Sequence[Path]) -> list[str]:
    """Lines that say which shards are missing, by the numbers in files' names; refuses two files of one number."""
    numbers: dict[tuple[int, int], Path] = {}
    for path in paths:
        if match := _SHARD.search(path.name):
            number = int(match[1]), int(match[2])
            if number in numbers:
                raise BadData(
                    f"{printable(numbers[number])} and {printable(path)} are both shard {number[0]} of {number[1]} of the "
                    f"{split} split, as of two data sets; give the folder of one, or remove the other"
                )
            numbers[number] = path
    notes = []
    for total in sorted({total for _, total in numbers}):
        had = sum(of == total for _, of in numbers)
        if had < total:
            notes.append(f"only {had} of {total} shards of the {split} split are there")
    return notes


def no_path(path: str, where: str) -> Path:
    """Refuses a path: for tables that must hold the images themselves."""
    raise BadData(f"{where}: the row has a path and no bytes; {_ADVICE}")


def _finder(table: str, home: str) -> _Find:
    """Finds the images that paths in a table lead to; see `_local_file` and `read_hub_file`."""
    if "://" in table:
        return partial(read_hub_file, home=home)
    root = Path(home).absolute()
    return partial(_local_file, roots=(root, root.resolve()), bases=(root, Path(table).absolute().parent))


def _local_file(path: str, where: str, *, roots: tuple[Path, Path], bases: tuple[Path, Path]) -> Path:
    """A file inside the data folder, by its path from there or from the folder of the table. It may be missing.

    Args:
        path: the path in the table.
        where: file and row, for messages.
        roots: the data folder as given and without links.
        bases: folders that the path may start from.
    Raises:
        BadData: the path leads out of the data folder, through a link too, or to two files.
    """
    # By its letters first: merely to look at a file outside may do something, such as mounting a disk.
    places = dict.fromkeys(Path(os.path.normpath(base / path)) for base in bases)
    inside = [place for place in places if any(place.is_relative_to(root) for root in roots)]
    try:
        there = {place.resolve() for place in inside if os.path.lexists(place)}
    except (OSError, RuntimeError) as error:  # links in a circle
        raise BadData(f"{where}: its image cannot be found ({error}); {_ADVICE}") from error
    if "://" in path or not inside or any(not place.is_relative_to(roots[1]) for place in there):
        raise BadData(f"{where}: its image lies outside of the data folder; {_ADVICE}")
    if len(there) > 1:
        raise BadData(
            f"{where}: its path leads to several files, {' and '.join(map(str, sorted(there)))}; keep one of them"
        )
    return there.pop() if there else inside[0]


def check_hub_file(path: str, where: str, *, home: str) -> None:
    """Refuses an address outside of a repository; a file in an archive of it lies inside.

    Raises:
        BadData: the address leads elsewhere.
    """
    *inner, place = path.split("::")
    archived = all(part.partition("://")[0] in _ARCHIVES for part in inner)
    own = place.casefold().startswith((f"{home}@".casefold(), f"{home}/".casefold()))
    if not archived or not own or ".." in PurePosixPath(place).parts:
        raise BadData(f"{where}: {shown(path)} lies outside of the data set's repository; {_ADVICE}")


def read_hub_file(path: str, where: str, *, home: str) -> bytes:
    """Content of a file of a repository on the hub, or of a file in an archive there.

    Raises:
        BadData: the address leads elsewhere.
    """
    check_hub_file(path, where, home=home)
    fsspec = optional_import("fsspec", extra="train", purpose="reading images")
    with fsspec.open(path, "rb") as file:
        return file.read()
