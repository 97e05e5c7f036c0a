"""Folders of images: class folders, and which kind of source a name or a folder is."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pocketcnn.data.decode import SUFFIXES, RawImage
from pocketcnn.data.sets import BUILT_IN
from pocketcnn.data.sources import TEST_NAMES, TRAIN_NAMES, AbstractSource, HubDataSet, ParquetFolder, stat_of
from pocketcnn.errors import BadData, UnknownData


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
        return [[split, label, *stat_of(file)] for split, label, file in listed]

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        train = next(split for split in self.files if split in TRAIN_NAMES)
        classes = tuple(sorted({label for label, _ in self.files[train]}))
        return {
            split: [RawImage(str(file), file, label) for label, file in files] for split, files in self.files.items()
        }, classes


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
