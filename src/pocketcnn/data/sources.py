"""Sources of labelled images: scikit-learn's digits, the hub and parquet folders."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.data.columns import NOT_ASKED, Asked, Column, Meaning, alike, chosen, columns_of, meaning_of
from pocketcnn.data.decode import DecodedSplit, RawImage, Reading, decode_splits
from pocketcnn.data.dividing import class_index
from pocketcnn.data.found import NOTHING, Found, Tally, printable
from pocketcnn.data.sets import BUILT_IN, Images
from pocketcnn.data.tables import Table, check_hub_file, open_table, raw_image, read_hub_file, split_files
from pocketcnn.data.walk import stats_of
from pocketcnn.errors import BadData, PocketError, UnknownData
from pocketcnn.support.memory import require_memory
from pocketcnn.support.optional import optional_import

_KINDS = {  # what hub data sets call their splits
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
# Label columns of public sets that have several: the one that papers report.
_KNOWN_LABELS = {"uoft-cs/cifar100": "fine_label"}


@dataclass(frozen=True)
class Decoded:
    """The decoded images of a source; `test` and `validation` are None if it has no such splits."""

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    skipped: int
    validation: Images | None = None
    found: Found = NOTHING


class AbstractSource(abc.ABC):
    """A place with labelled images."""

    label: str  # a short name for cache files
    found: Found = NOTHING  # what is known before images are decoded
    read: Found = NOTHING  # what is known of the splits, after `splits` found them

    @abc.abstractmethod
    def fingerprint(self) -> list[Any]:
        """Describes the files as JSON values that change when a file changes."""

    @abc.abstractmethod
    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        """Encoded images by split name, and the class names if labels are indices of them."""

    def decode(self, reading: Reading) -> Decoded:
        """Reads and decodes all splits."""
        splits, classes = self.splits()
        check_training(self.label, splits)
        decoded, deep = decode_splits(self.label, splits, reading)
        roles, more = roles_of(self.label, {split: found.labels for split, found in decoded.items()})
        others = [label for split in roles.values() for label in decoded[split].labels]
        seen = [label for label in decoded["train"].seen if label is not None]
        classes, index = class_index(self.label, seen, others, classes)

        def collect(found: DecodedSplit) -> Images:
            return Images(
                torch.from_numpy(np.stack(found.images)), torch.tensor([index[label] for label in found.labels])
            )

        rest = {role: collect(decoded[split]) for role, split in roles.items()}
        return Decoded(
            collect(decoded["train"]),
            rest.get("test"),
            classes,
            sum(found.skipped for found in decoded.values()),
            rest.get("validation"),
            self.read + deep + Found(notes=more, doubts=alike(classes)),
        )


def check_training(name: str, splits: Iterable[str]) -> None:
    """Checks that there is a training split."""
    if "train" not in splits:
        raise BadData(
            f"{name}: no training split; found {', '.join(splits) or 'nothing'}; call the files of one train-*.parquet"
        )


def roles_of(name: str, labels: Mapping[str, Sequence[Any]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tells which splits serve for test and for validation.

    Some public test splits have no labels. Then the validation split takes their place.

    Args:
        name: of the data set, for messages.
        labels: the labels of each split, None where there is none.
    Returns:
        The split that serves for "test", and for "validation"; and a line that says which split has no labels.
    Raises:
        BadData: some images of a split have labels, and others have none.
    """
    order = [split for split in ("train", "test", "validation") if split in labels]
    found = {split: sum(label is None for label in labels[split]) for split in order}
    for split, missing in found.items():
        if 0 < missing < len(labels[split]) or (missing and split == "train"):
            kind = "training" if split == "train" else split
            raise BadData(
                f"{name}: {missing} of {len(labels[split])} {kind} images have no label (none, or -1); remove their rows"
            )
    del found["train"]
    labelled = [split for split, missing in found.items() if not missing]
    notes = []
    if unlabelled := [split for split in found if split not in labelled]:
        instead = "; the validation split takes its place" if labelled == ["validation"] else ""
        notes.append(f"left out, as their images have no labels: {', '.join(unlabelled)}{instead}")
    elif labelled == ["validation"]:
        notes.append("there is no test split; the validation split takes its place")
    return dict(zip(("test", "validation"), labelled, strict=False)), tuple(notes)


class ParquetFolder(AbstractSource):
    """A folder of parquet files. As on the hub, their names tell the splits.

    Args:
        root: the folder.
        files: the parquet files in it.
        images: image files in it, to which rows may lead.
        tally: gets the files that are left out.
        asked: columns that the user asks for.
    """

    def __init__(
        self, root: Path, files: Sequence[Path], images: Sequence[Path], tally: Tally, asked: Asked = NOT_ASKED
    ) -> None:
        self.root, self.label, self.asked, self.images = root, printable(root.resolve().name), asked, images
        self.files, read = split_files(root, files, tally)
        self.found = read + Found(left_out=tally.all())

    def fingerprint(self) -> list[Any]:
        files = stats_of(Path(file) for files in self.files.values() for file in files)
        images = stats_of(self.images)
        return [list(self.files), files, images, self.asked.image, self.asked.label]

    @cached_property
    def table(self) -> Table:
        """The schemas of all files."""
        return open_table(self.label, self.files, str(self.root), self.asked)

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        self.read = self.table.found
        return {split: self.table.rows(split) for split in self.table.splits}, self.table.meaning.classes


class HubDataSet(AbstractSource):
    """An image data set on the Hugging Face hub, streamed once.

    Args:
        id: of the data set.
        asked: columns that the user asks for.
        home: beginning of the addresses of its files, besides which none is opened.
    """

    def __init__(self, id: str, asked: Asked = NOT_ASKED, home: str | None = None) -> None:
        self.id, self.label = id, id.replace("/", "--")
        self.asked, self.home = asked, f"hf://datasets/{id}" if home is None else home

    def fingerprint(self) -> list[Any]:
        # Assumes that what is published under an id does not change.
        return [self.id, [self.asked.image, self.asked.label]] if self.asked else [self.id]

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        datasets = optional_import("datasets", extra="train", purpose="reading the hub")
        asked = replace(self.asked, label=self.asked.label or _KNOWN_LABELS.get(self.id))
        note = f"labels are those of the column {asked.label!r}; --label-column takes others"
        self.read = Found(notes=(note,) if asked != self.asked else ())
        try:
            with without_bars(datasets):
                builder = datasets.load_dataset_builder(self.id)
                files = {str(name): list(map(str, paths)) for name, paths in (builder.config.data_files or {}).items()}
                self._check_home(files)
                if builder.name == "parquet":
                    named = {split: files[name] for split, name in self._known_splits(files).items()}
                    features = builder.info.features
                    metadata = features.arrow_schema.metadata if features else None
                    table = open_table(self.id, named, self.home, asked, metadata)
                    self.read += table.found
                    return {split: table.rows(split) for split in table.splits}, table.meaning.classes
                found = {str(name): rows for name, rows in builder.as_streaming_dataset().items()}
        except PocketError:
            raise
        except datasets.exceptions.DatasetNotFoundError as error:
            hint = "The Hugging Face hub has no data set of that name that you can access."
            raise UnknownData(self.id, BUILT_IN, hint) from error
        except Exception as error:  # network, permissions, formats
            raise BadData(
                f"{self.id}: cannot be loaded from the Hugging Face hub ({type(error).__name__}); check the network "
                "and the name, or pass a folder with its parquet files"
            ) from error
        return self._streamed({split: found[name] for split, name in self._known_splits(found).items()}, asked)

    def _known_splits(self, found: Iterable[str]) -> dict[str, str]:
        """The splits train, test and validation, and what the data set calls them; notes the others."""
        found = list(found)
        known: dict[str, str] = {}
        for split in ("train", "test", "validation"):
            for own in sorted((own for own in found if _KINDS.get(own.lower()) == split), key=lambda own: own != split):
                known.setdefault(split, own)
        others = [own for own in found if own not in known.values()]
        self.read += Found(doubts=(f"its splits left out: {', '.join(others)}",) if others else ())
        return known

    def _check_home(self, files: Mapping[str, list[str]]) -> None:
        """Refuses files of other places, to which a repository may point."""
        for paths in files.values():
            for path in paths:
                check_hub_file(path, self.id, home=self.home)

    def _streamed(
        self, splits: Mapping[str, Any], asked: Asked
    ) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        """Rows of splits that are not stored in parquet files, such as archives of images."""
        columns = {}
        for split, rows in splits.items():
            where = f"{self.id}/{split}"
            if rows.features is None:
                raise BadData(
                    f"{where}: no column of images; its columns are unknown; pass a folder with its parquet files"
                )
            columns[split] = chosen(columns_of(rows.features.arrow_schema, where), where, asked)
        labels = {split: (f"{self.id}/{split}", label) for split, (_, label) in columns.items()}
        train = [labels.pop("train")] if "train" in labels else []
        meaning = meaning_of(train, list(labels.values()))
        return {
            split: streamed_rows(rows, f"{self.id}/{split}", columns[split], meaning, self.home)
            for split, rows in splits.items()
        }, meaning.classes


def read_digits(reading: Reading) -> Decoded:
    """Reads scikit-learn's digits: 8x8 pixels of 17 grey levels, spread over 0 to 255."""
    sklearn = optional_import("sklearn.datasets", extra="train", purpose="the digits data set")
    digits = sklearn.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    images = torch.from_numpy(pixels)
    if reading.image_size:
        size = (reading.image_size, reading.image_size)
        require_memory(
            5 * len(images) * size[0] * size[1], f"digits of {size[0]}x{size[1]} pixels", "give a smaller image_size"
        )
        resized = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = resized.round().to(torch.uint8)
    if reading.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Decoded(Images(images, labels), None, tuple(map(str, range(10))), 0)


@contextmanager
def without_bars(datasets: Any) -> Iterator[None]:
    """Hides the progress bars of the package `datasets`; ours shows the progress."""
    was_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def streamed_rows(
    rows: Any, where: str, columns: tuple[Column, Column], meaning: Meaning, home: str
) -> Iterator[RawImage]:
    """Encoded images of a table that the package `datasets` streams, with their labels.

    Args:
        rows: the streamed table.
        where: its place, for messages.
        columns: its image column and its label column.
        meaning: what the labels stand for.
        home: beginning of the addresses that rows may lead to.
    """
    datasets = optional_import("datasets", extra="train", purpose="reading images")
    image, label = columns
    stream = rows.select_columns(list(dict.fromkeys([image.name, label.name])))
    if image.holds == "images":
        stream = stream.cast_column(image.name, datasets.Image(decode=False))

    def find(path: str, where: str) -> bytes:
        return read_hub_file(path, where, home=home)

    try:
        for number, row in enumerate(stream):
            value = meaning.label(row[label.name], label, where, number)
            yield raw_image(row[image.name], f"{where} row {number}", value, find)
    except (OSError, ValueError) as error:
        raise BadData(f"{where}: damaged or cut short ({error}); copy it again") from error
