"""Sources of labelled images: scikit-learn's digits, the hub, parquet folders and class folders."""

import abc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.data.decode import SUFFIXES, RawImage, Reading, decode_all
from pocketcnn.data.dividing import class_index, is_label
from pocketcnn.data.sets import BUILT_IN, Images
from pocketcnn.errors import BadData, UnknownData
from pocketcnn.support.memory import require_memory
from pocketcnn.support.optional import optional_import

TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "validation", "valid", "val", "testing")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class Decoded:
    """The decoded images of a source; `test` is None if it has no test split."""

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    skipped: int


class AbstractSource(abc.ABC):
    """A place with labelled images."""

    label: str  # a short name for cache files

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


class ClassFolders(AbstractSource):
    """A folder of class folders of images, or of `train` and `test` folders that hold class folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name
        folders = {folder.name.lower(): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
        splits = (*TRAIN_NAMES, *TEST_NAMES)  # a folder with one of these names that holds images is a class
        named = {n: f for n, f in folders.items() if n in splits and any(inner.is_dir() for inner in f.iterdir())}
        self.roots = named if any(name in named for name in TRAIN_NAMES) else {"train": root}
        self.files = {split: self._scan(folder) for split, folder in self.roots.items()}

    def _scan(self, folder: Path) -> list[tuple[str, Path]]:
        """Class name and path of every image file of a split."""
        classes = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
        if not classes:
            loose = sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir())
            raise BadData(
                f"{folder}: labels are missing: {loose} images lie in the folder itself; "
                "put the images of each class in a folder of the class's name"
            )
        found = []
        for label in classes:
            files = sorted(file for file in label.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not files:
                raise BadData(f"{label}: no images of this class; add some or remove the folder")
            found += [(label.name, file) for file in files]
        return found

    def fingerprint(self) -> list[Any]:
        listed = [(split, *entry) for split, files in self.files.items() for entry in files]
        return [[split, label, *_stat(file)] for split, label, file in listed]

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        train = next(split for split in self.files if split in TRAIN_NAMES)
        classes = tuple(sorted({label for label, _ in self.files[train]}))
        return {
            split: [RawImage(str(file), file, label) for label, file in files] for split, files in self.files.items()
        }, classes


class ParquetFolder(AbstractSource):
    """A folder of parquet files in the hub's image schema; as on the hub, file names tell the splits."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name

    def fingerprint(self) -> list[Any]:
        return [_stat(file) for file in sorted(self.root.rglob("*.parquet"))]

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
        require_memory(
            5 * len(images) * size[0] * size[1], f"digits of {size[0]}x{size[1]} pixels", "give a smaller image_size"
        )
        resized = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = resized.round().to(torch.uint8)
    if reading.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Decoded(Images(images, labels), None, tuple(map(str, range(10))), 0)


def _stat(file: Path) -> list[Any]:
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


def find_source(name: str) -> AbstractSource:
    """The source that a name stands for: a folder, a built-in data set on the hub, or a hub id."""
    folder = Path(name)
    if folder.is_dir():
        return ParquetFolder(folder) if any(folder.rglob("*.parquet")) else ClassFolders(folder)
    if folder.is_file():
        raise BadData(f"{name}: a file; give a folder of parquet files or of class folders, or a hub id")
    if name in BUILT_IN:
        return HubDataSet(BUILT_IN[name])
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = "A folder or a hub id 'owner/name' is accepted too, but there is no such folder."
        raise UnknownData(name, BUILT_IN, hint)
    return HubDataSet(name)
