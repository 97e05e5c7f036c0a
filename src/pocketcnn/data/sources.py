"""Sources of labelled images: scikit-learn's digits, the hub and parquet folders."""

import abc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.data.decode import RawImage, Reading, decode_all
from pocketcnn.data.dividing import class_index, is_label
from pocketcnn.data.found import NOTHING, Found
from pocketcnn.data.sets import BUILT_IN, Images
from pocketcnn.errors import BadData, UnknownData
from pocketcnn.support.optional import optional_import

TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "validation", "valid", "val", "testing")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


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

    @abc.abstractmethod
    def fingerprint(self) -> list[Any]:
        """Describes the files as JSON values that change when a file changes."""

    @abc.abstractmethod
    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        """Encoded images by split name, and the class names if labels are indices of them."""

    def decode(self, reading: Reading) -> Decoded:
        """Reads and decodes all training and test images."""
        splits, classes = self.splits()
        train_name = next((name for name in TRAIN_NAMES if name in splits), None)
        if train_name is None:
            raise BadData(f"{self.label}: no training split; found {', '.join(splits) or 'nothing'}")
        images, labels, skipped = decode_all(splits[train_name], reading)
        if not images:
            raise BadData(f"{self.label}: no images in {train_name!r}")
        # Some public test splits have no labels; then the validation split takes their place.
        test_images: list[np.ndarray] = []
        test_labels: list[Any] = []
        for name in (name for name in TEST_NAMES if name in splits):
            test_images, test_labels, bad = decode_all(splits[name], reading, expected=images[0])
            skipped += bad
            if all(is_label(label) for label in test_labels):
                break
            test_images, test_labels = [], []
        classes, index = class_index(self.label, labels, test_labels, classes)

        def collect(pixels: list[np.ndarray], values: list[Any]) -> Images:
            return Images(torch.from_numpy(np.stack(pixels)), torch.tensor([index[value] for value in values]))

        test = collect(test_images, test_labels) if test_images else None
        return Decoded(collect(images, labels), test, classes, skipped)


class ParquetFolder(AbstractSource):
    """A folder of parquet files in the hub's image schema; as on the hub, file names tell the splits."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name

    def fingerprint(self) -> list[Any]:
        return [stat_of(file) for file in sorted(self.root.rglob("*.parquet"))]

    def split_files(self) -> dict[str, list[str]]:
        """Paths of the parquet files, by split name."""
        datasets = optional_import("datasets", extra="train", purpose="reading parquet files")
        with without_bars(datasets):
            found = datasets.load_dataset_builder(str(self.root.resolve())).config.data_files
        return {str(split): [str(file) for file in files] for split, files in found.items()}

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        datasets = optional_import("datasets", extra="train", purpose="reading parquet files")
        splits: dict[str, Iterable[RawImage]] = {}
        classes = None
        with without_bars(datasets):
            for split, files in self.split_files().items():
                images = []
                for file in files:
                    try:
                        rows = datasets.load_dataset("parquet", data_files=file, split="train", streaming=True)
                        columns = columns_of(rows.features, file)
                    except BadData:
                        raise
                    except Exception as error:  # parsers raise many kinds
                        raise BadData(f"{file}: not readable as parquet ({error}); copy it again") from error
                    classes = classes or columns[2]
                    images.append(_rows(rows, file, columns))
                splits[split] = chain.from_iterable(images)
        return splits, classes


class HubDataSet(AbstractSource):
    """An image data set on the Hugging Face hub, streamed once."""

    def __init__(self, id: str) -> None:
        self.id, self.label = id, id.replace("/", "--")

    def fingerprint(self) -> list[Any]:
        return [self.id]  # assumes that what is published under an id does not change

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        datasets = optional_import("datasets", extra="train", purpose="reading the hub")
        try:
            with without_bars(datasets):
                found = datasets.load_dataset(self.id, streaming=True)
        except datasets.exceptions.DatasetNotFoundError as error:
            hint = "The Hugging Face hub has no data set of that name that you can access."
            raise UnknownData(self.id, BUILT_IN, hint) from error
        except Exception as error:  # network, permissions, formats
            raise BadData(
                f"{self.id}: cannot be loaded from the Hugging Face hub ({type(error).__name__}); check the network "
                "and the name, or pass a folder with its parquet files"
            ) from error
        columns = {split: columns_of(rows.features, f"{self.id}/{split}") for split, rows in found.items()}
        splits = {split: _rows(rows, f"{self.id}/{split}", columns[split]) for split, rows in found.items()}
        return splits, next(iter(columns.values()))[2]  # type: ignore[return-value]


def read_digits(reading: Reading) -> Decoded:
    """Reads scikit-learn's digits: 8x8 pixels of 17 grey levels, spread over 0 to 255."""
    sklearn = optional_import("sklearn.datasets", extra="train", purpose="the digits data set")
    digits = sklearn.load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    images = torch.from_numpy(pixels)
    if reading.image_size:
        size = (reading.image_size, reading.image_size)
        resized = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = resized.round().to(torch.uint8)
    if reading.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Decoded(Images(images, labels), None, tuple(map(str, range(10))), 0)


def stat_of(file: Path) -> list[Any]:
    """Path, size and time of change of a file."""
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


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


def columns_of(features: Any, where: str) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column, and the class names if the schema has them."""
    features = features or {}
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = next((n for n, kind in kinds.items() if kind == "Image"), None)
    label = next((n for n in _LABEL_COLUMNS if n in kinds), None) or next(
        (n for n, kind in kinds.items() if kind == "ClassLabel"), None
    )
    if image is None:
        raise BadData(f"{where}: no column of images; its columns are {', '.join(kinds) or 'unknown'}")
    if label is None:
        raise BadData(
            f"{where}: labels are missing: none of its columns {', '.join(kinds)} is called "
            f"{', '.join(_LABEL_COLUMNS)} or holds class labels"
        )
    names = tuple(features[label].names) if kinds[label] == "ClassLabel" else None
    return image, label, names


def _rows(rows: Any, where: str, columns: tuple[str, str, Any]) -> Iterator[RawImage]:
    """Encoded images of a streamed table, with their labels."""
    datasets = optional_import("datasets", extra="train", purpose="reading images")
    fsspec = optional_import("fsspec", extra="train", purpose="reading images")
    image, label, _ = columns
    stream = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    try:
        for number, row in enumerate(stream):
            cell = row[image] or {}
            path, content = cell.get("path"), cell.get("bytes")
            if content is None and path:  # a folder of images gives paths or URLs, also on the hub
                with fsspec.open(path, "rb") as file:
                    content = file.read()
            yield RawImage(f"{where} row {number}{f' ({path})' if path else ''}", content, row[label])
    except (OSError, ValueError) as error:
        raise BadData(f"{where}: damaged or cut short ({error}); copy it again") from error
