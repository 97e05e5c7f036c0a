"""Folders of images: class folders, image files at any depth, and which kind of source a name or a folder is."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pocketcnn.data.columns import NOT_ASKED, Asked
from pocketcnn.data.decode import RawImage
from pocketcnn.data.found import Tally, in_words, printable
from pocketcnn.data.layout import splits_of
from pocketcnn.data.sets import BUILT_IN
from pocketcnn.data.sources import AbstractSource, HubDataSet, ParquetFolder
from pocketcnn.data.walk import Folder, scan, stats_of
from pocketcnn.errors import BadData, UnknownData


class ClassFolders(AbstractSource):
    """A folder of class folders of images, or of split folders that hold class folders; see `splits_of`.

    The splits are called "train", "test" and "validation", whatever their folders are called.
    """

    def __init__(self, root: Path, walked: Folder, tally: Tally) -> None:
        self.root, self.label = root, printable(root.resolve().name)
        found, self.found = splits_of(walked, tally)
        self.folders = {split: place.top.name.lower() for split, place in found.items()}
        self.files = {
            split: [(folder.name, file) for folder in place.classes for file in folder.all_images()]
            for split, place in found.items()
        }
        self.names = {
            split: _class_names(place.top.path, [folder.name for folder in place.classes])
            for split, place in found.items()
        }

    def fingerprint(self) -> list[Any]:
        # A folder without splits is one split called train. The folders' own names stand here, as they always did.
        names = self.folders if len(self.folders) > 1 else {"train": "train"}
        listed = [(names[split], *entry) for split, files in self.files.items() for entry in files]
        stats = stats_of(file for _, _, file in listed)
        described: list[Any] = [[split, label, *stat] for (split, label, _), stat in zip(listed, stats, strict=True)]
        return [*described, "own validation split"] if "validation" in self.files else described

    def splits(self) -> tuple[dict[str, Iterable[RawImage]], tuple[str, ...] | None]:
        _check_names(printable(self.root), self.names)
        return {
            split: [RawImage(printable(file), file, self.names[split][label]) for label, file in files]
            for split, files in self.files.items()
        }, tuple(self.names["train"].values())


def _class_names(top: Path, folders: list[str]) -> dict[str, str]:
    """Class names by folder name: in Unicode's composed form, without blanks at the ends, on one line.

    Raises:
        BadData: two folders have the same class name.
    """
    names = {folder: printable(unicodedata.normalize("NFC", folder).strip() or folder) for folder in folders}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        same = [ascii(folder) for folder, name in names.items() if name == twice[0]]
        raise BadData(
            f"{printable(top)}: {' and '.join(same)} are the same class name, but for blanks or Unicode forms; put their "
            "images in one folder"
        )
    return names


def _check_names(where: str, names: dict[str, dict[str, str]]) -> None:
    """Checks that there are two classes, and that those of all splits are training classes."""
    train = list(names["train"].values())
    if len(train) < 2:
        raise BadData(f"{where}: only one class ({', '.join(train)}); a classifier needs at least two")
    for split, found in names.items():
        for name in found.values():
            if name in train:
                continue
            if near := [other for other in train if other.casefold() == name.casefold()]:
                raise BadData(
                    f"{where}: class {name!r} of the {split} split is called {near[0]!r} in training; rename one of the folders"
                )
            raise BadData(f"{where}: {split} label {name!r} is not one of the training classes {', '.join(train)}")


def find_source(name: str, asked: Asked = NOT_ASKED) -> AbstractSource:
    """The source that a name stands for: a folder, a built-in data set on the hub, or a hub id.

    Args:
        name: as given by the user.
        asked: columns that the user asks for.
    """
    folder = Path(name)
    if os.path.isdir(name):  # unlike Path.is_dir, no error for names that no file can have
        return _folder_source(folder, asked)
    if os.path.exists(name):
        raise BadData(f"{printable(name)}: a file; give a folder of parquet files or of class folders, or a hub id")
    if name in BUILT_IN:
        return HubDataSet(BUILT_IN[name], asked)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = "A folder or a hub id 'owner/name' is accepted too, but there is no such folder."
        raise UnknownData(name, BUILT_IN, hint)
    return HubDataSet(name, asked)


def _folder_source(folder: Path, asked: Asked) -> AbstractSource:
    """The source of a folder, by what is in it."""
    tally = Tally(folder)
    walked = scan(folder, tally)
    others = Counter(Path(file).suffix.lower() or file for inner in walked.everything() for file in inner.others)
    if others[".parquet"]:
        tally.entries.pop("files with suffix .parquet")
        every = (inner.path / name for inner in walked.everything() for name in inner.others)
        files = [path for path in every if path.suffix.lower() == ".parquet"]
        if walked.total:
            reason = "image files beside parquet files (read only where a row leads to them)"
            tally.add(reason, walked.all_images()[0], count=walked.total)
        return ParquetFolder(folder, files, walked.all_images(), tally, asked)
    if walked.total:
        if asked:
            raise BadData(
                f"{printable(folder)}: class folders have no columns; leave out --image-column and --label-column"
            )
        return ClassFolders(folder, walked, tally)
    held = ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in others.most_common(4))
    left = tuple(entry for entry in tally.all() if not entry.reason.startswith("files with"))
    raise BadData(
        f"{printable(folder)}: neither images nor parquet files in it{f', but {held}' if held else ''}"
        f"{f' (left out: {in_words(left)})' if left else ''}; "
        + ("loading scripts are never run; " if others[".py"] else "")
        + "put the images of each class in a folder of the class's name"
    )
