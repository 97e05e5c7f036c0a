"""Where images come from: scikit-learn's digits, the hub, parquet folders, class folders. Each decodes to uint8 once."""

import abc
import io
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pocketcnn.errors import BadData, BadImage, UnknownData
from pocketcnn.support.optional import optional_import

if TYPE_CHECKING:
    from pocketcnn.data.images import Images

_log = logging.getLogger(__name__)
_TRAIN, _TEST = ("train", "training"), ("test", "validation", "valid", "val", "testing")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Reading:
    """How images are read; see `load`."""

    image_size: int | None = None
    channels: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class Decoded:
    """A source read whole; `test` is None where it has none."""

    train: "Images"
    test: "Images | None"
    classes: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class RawImage:
    """An encoded image, where it was found, and its label."""

    where: str
    content: bytes | Path | None
    label: Any


class AbstractSource(abc.ABC):
    """A place with labelled images."""

    label: str  # a short name for cache files

    @abc.abstractmethod
    def fingerprint(self) -> list[Any]:
        """Changes when the files do."""

    @abc.abstractmethod
    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        """Encoded images by split name, and the classes' names where labels are their indices."""

    def decode(self, reading: Reading) -> Decoded:
        """Reads and decodes all training and test images."""
        from pocketcnn.data.images import Images

        splits, classes = self.splits()
        train_name = next((name for name in _TRAIN if name in splits), None)
        if train_name is None:
            raise BadData(f"{self.label}: no training split; found {', '.join(splits) or 'nothing'}")
        images, labels, skipped = _decode_all(splits[train_name], reading)
        if not images:
            raise BadData(f"{self.label}: no images in {train_name!r}")
        # Public test splits sometimes come without labels; then the validation split is the one to report.
        test_images: list[np.ndarray] = []
        test_labels: list[Any] = []
        for name in (name for name in _TEST if name in splits):
            test_images, test_labels, bad = _decode_all(splits[name], reading, expected=images[0])
            skipped += bad
            if all(_is_label(label) for label in test_labels):
                break
            test_images, test_labels = [], []
        classes, index = class_index(self.label, labels, test_labels, classes)

        def collect(pixels: list[np.ndarray], values: list[Any]) -> "Images":
            return Images(torch.from_numpy(np.stack(pixels)), torch.tensor([index[v] for v in values]))

        return Decoded(
            collect(images, labels), collect(test_images, test_labels) if test_images else None, classes, skipped
        )


class ClassFolders(AbstractSource):
    """A folder of class folders of images, or of `train` and `test` folders of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name
        folders = {folder.name.lower(): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
        splits = (*_TRAIN, *_TEST)  # a folder of images with such a name is a class
        named = {n: f for n, f in folders.items() if n in splits and any(inner.is_dir() for inner in f.iterdir())}
        self.roots = named if any(name in named for name in _TRAIN) else {"train": root}
        self.files = {split: self._scan(folder) for split, folder in self.roots.items()}

    def _scan(self, folder: Path) -> list[tuple[str, Path]]:
        classes = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
        if not classes:
            loose = sum(file.suffix.lower() in _SUFFIXES for file in folder.iterdir())
            raise BadData(
                f"{folder}: labels are missing: {loose} images lie in the folder itself; "
                "put the images of each class in a folder of the class's name"
            )
        found = []
        for label in classes:
            files = sorted(file for file in label.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not files:
                raise BadData(f"{label}: no images of this class; add some or remove the folder")
            found += [(label.name, file) for file in files]
        return found

    def fingerprint(self) -> list[Any]:
        listed = [(split, *entry) for split, files in self.files.items() for entry in files]
        return [[split, label, *_stat(file)] for split, label, file in listed]

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        train = next(split for split in self.files if split in _TRAIN)
        classes = tuple(sorted({label for label, _ in self.files[train]}))
        return {
            split: [RawImage(str(file), file, label) for label, file in files] for split, files in self.files.items()
        }, classes


class ParquetFolder(AbstractSource):
    """A folder of parquet files in the hub's image schema; file names tell the splits, as on the hub."""

    def __init__(self, root: Path) -> None:
        self.root, self.label = root, root.resolve().name

    def fingerprint(self) -> list[Any]:
        return [_stat(file) for file in sorted(self.root.rglob("*.parquet"))]

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        datasets = optional_import("datasets", extra="train", purpose="reading parquet files")
        with _quiet(datasets):
            found = datasets.load_dataset_builder(str(self.root.resolve())).config.data_files
            splits: dict[str, Iterable[RawImage]] = {}
            classes = None
            for split, files in found.items():
                rows = []
                for file in files:
                    try:
                        rows.append(datasets.load_dataset("parquet", data_files=file, split="train", streaming=True))
                        columns = _columns(rows[-1].features, file)
                    except BadData:
                        raise
                    except Exception as error:
                        raise BadData(f"{file}: not readable as parquet ({error}); copy it again") from error
                classes = classes or columns[2]
                splits[str(split)] = _chain(_rows(row, file, columns) for row, file in zip(rows, files, strict=True))
        return splits, classes


class HubDataSet(AbstractSource):
    """An image data set on the Hugging Face hub, streamed once."""

    def __init__(self, id: str) -> None:
        self.id, self.label = id, id.replace("/", "--")

    def fingerprint(self) -> list[Any]:
        return [self.id]  # what is published under an id is taken not to change

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        datasets = optional_import("datasets", extra="train", purpose="reading the hub")
        try:
            with _quiet(datasets):
                found = datasets.load_dataset(self.id, streaming=True)
        except datasets.exceptions.DatasetNotFoundError as error:
            from pocketcnn.data.images import BUILT_IN

            raise UnknownData(
                self.id, BUILT_IN, "The Hugging Face hub has none of that name that is open to you."
            ) from error
        except Exception as error:  # network, permissions, formats
            raise BadData(
                f"{self.id}: the Hugging Face hub did not give it ({type(error).__name__}); check the network and the "
                "name, or pass a folder with its parquet files"
            ) from error
        columns = {split: _columns(rows.features, f"{self.id}/{split}") for split, rows in found.items()}
        splits = {split: _rows(rows, f"{self.id}/{split}", columns[split]) for split, rows in found.items()}
        return splits, next(iter(columns.values()))[2]  # type: ignore[return-value]


def read_digits(reading: Reading) -> Decoded:
    """scikit-learn's digits: 8x8 pixels of 17 grey levels, spread over 0 to 255."""
    from pocketcnn.data.images import Images

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
    return Decoded(
        Images(images, torch.from_numpy(digits.target.astype(np.int64))), None, tuple(map(str, range(10))), 0
    )


def _stat(file: Path) -> list[Any]:
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


def _quiet(datasets: Any):
    """No progress bars from the reader; ours says what is going on."""
    import contextlib

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        was_on = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if was_on:
                datasets.enable_progress_bars()

    return quiet()


def _columns(features: Any, where: str) -> tuple[str, str, tuple[str, ...] | None]:
    """Image column, label column and the classes' names, where the schema has them."""
    features = features or {}
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = next((n for n, kind in kinds.items() if kind == "Image"), None)
    label = next((n for n in _LABEL_COLUMNS if n in kinds), None) or next(
        (n for n, kind in kinds.items() if kind == "ClassLabel"), None
    )
    if image is None:
        raise BadData(f"{where}: no image column; its columns are {', '.join(kinds) or 'unknown'}")
    if label is None:
        raise BadData(
            f"{where}: labels are missing: none of its columns {', '.join(kinds)} is called "
            f"{', '.join(_LABEL_COLUMNS)} or holds class labels"
        )
    names = tuple(features[label].names) if kinds[label] == "ClassLabel" else None
    return image, label, names


def _rows(rows: Any, where: str, columns: tuple[str, str, Any]) -> Iterator[RawImage]:
    datasets = optional_import("datasets", extra="train", purpose="reading images")
    fsspec = optional_import("fsspec", extra="train", purpose="reading images")
    image, label, _ = columns
    stream = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    try:
        for number, row in enumerate(stream):
            cell = row[image] or {}
            path, content = cell.get("path"), cell.get("bytes")
            if content is None and path:  # folders of images come as addresses, on the hub too
                with fsspec.open(path, "rb") as file:
                    content = file.read()
            yield RawImage(f"{where} row {number}{f' ({path})' if path else ''}", content, row[label])
    except (OSError, ValueError) as error:
        raise BadData(f"{where}: damaged or cut short ({error}); copy it again") from error


def _chain(parts: Iterable[Iterator[RawImage]]) -> Iterator[RawImage]:
    for part in parts:
        yield from part


def _is_label(label: Any) -> bool:
    return label is not None and label != -1


def class_index(
    label: str, train: list[Any], test: list[Any], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes' names, and which class each label found in the files stands for."""
    if missing := sum(not _is_label(value) for value in train):
        raise BadData(f"{label}: {missing} of {len(train)} training images have no label (none, or -1)")
    if strange := next((value for value in (*train, *test) if not isinstance(value, int | str)), None):
        raise BadData(f"{label}: label {strange!r} is neither a whole number nor a text; one class an image is wanted")
    if classes is None:
        known = sorted(set(train))
        classes, index = tuple(map(str, known)), {value: number for number, value in enumerate(known)}
    else:
        index = {i: i for i in range(len(classes))} | {value: i for i, value in enumerate(classes)}
    if unknown := sorted(str(value) for value in {*train, *test} if value not in index):
        raise BadData(f"{label}: label {unknown[0]!r} is not one of the training classes {', '.join(classes)}")
    return classes, index


def _decode_all(
    raw: Iterable[RawImage], reading: Reading, expected: np.ndarray | None = None
) -> tuple[list[np.ndarray], list[Any], int]:
    """Pixels [channels, height, width] and labels of all images that decode, and how many did not."""
    pixels, labels, skipped = [], [], 0
    stream = iter(raw)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(stream, 2048)):
            for item, result in zip(chunk, pool.map(lambda item: _decode(item, reading), chunk), strict=True):
                if isinstance(result, BadImage):
                    if not reading.skip_bad:
                        raise result
                    skipped += 1
                    _log.warning("skipped: %s", result)
                    continue
                first = expected if expected is not None else result
                if result.shape != first.shape:
                    raise BadImage(f"{item.where}: {_difference(result.shape, first.shape)}")
                expected = first
                pixels.append(result)
                labels.append(item.label)
    return pixels, labels, skipped


def _difference(found: tuple[int, ...], first: tuple[int, ...]) -> str:
    colours = {1: "grey", 3: "RGB"}
    if found[0] != first[0]:
        return (
            f"{colours[found[0]]}, but the images before are {colours[first[0]]}; "
            "pass channels=1 or channels=3 to convert all of them"
        )
    return (
        f"{found[1]} x {found[2]} pixels, but the images before are {first[1]} x {first[2]} (height x width); "
        "pass image_size= to bring all to one size"
    )


def _decode(item: RawImage, reading: Reading) -> np.ndarray | BadImage:
    image_module = optional_import("PIL.Image", extra="train", purpose="decoding images")
    try:
        if item.content is None:
            raise ValueError("there is no image in the row")
        source = io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content
        with image_module.open(source) as opened:
            image = _upright_and_opaque(opened, image_module)
            channels = reading.channels or (1 if opened.mode in ("1", "L", "LA", "I;16") else 3)
            converted = image.convert("L" if channels == 1 else "RGB")
        if reading.image_size:
            converted = _fit_square(converted, reading.image_size, image_module)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds
        return BadImage(
            f"{item.where}: cannot be decoded ({error}); repair it or pass skip_bad_images (--skip-bad-images)"
        )
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright_and_opaque(image: Any, image_module: Any) -> Any:
    """Turned as its camera was held, on white where it is transparent, and of 8 bits where it had 16."""
    operations = optional_import("PIL.ImageOps", extra="train", purpose="decoding images")
    image = operations.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return image_module.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert them to 8 or 16 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image_module.alpha_composite(image_module.new("RGBA", image.size, "white"), image)
    return image


def read_images(folder: Path, reading: Reading) -> tuple[torch.Tensor, int]:
    """All image files below a folder as uint8 [n, channels, height, width], in the order of their names, and how many did
    not decode."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    pixels, _, skipped = _decode_all((RawImage(str(file), file, None) for file in files), reading)
    return torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, dtype=torch.uint8), skipped


def read_image(path: str | Path, *, image_size: int | None = None, channels: int | None = None) -> torch.Tensor:
    """One image file as uint8, [channels, height, width].

    Args:
        path: of the file.
        image_size: side in pixels it is brought to, by its shorter side and a crop of the centre.
        channels: 1 or 3 converts to grey or RGB.
    Raises:
        FileNotFoundError: there is no such file.
        BadImage: it cannot be decoded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    found = _decode(RawImage(str(path), Path(path), None), Reading(image_size, channels))
    if isinstance(found, BadImage):
        raise found
    return torch.from_numpy(found.copy())


def _fit_square(image: Any, side: int, image_module: Any) -> Any:
    """Resizes by the shorter side, then crops the centre."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), image_module.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))
