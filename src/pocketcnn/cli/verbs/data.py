"""`pocketcnn data`: loads a data set and shows what was read as what, and the images of each class in each split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketcnn.cli.arguments import DataOptions, load_data
from pocketcnn.cli.parsing import data_help, parse

if TYPE_CHECKING:
    from pocketcnn.data.found import Found


def data(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Data(DataOptions):
        data: Positional[str]
        """Built-in name, hub id, folder of parquet files or of class folders."""

    given = parse(Data, words, "data", data_help)
    import torch

    from pocketcnn.data import Images
    from pocketcnn.data.dividing import contradicting_images, shared_images

    found = load_data(given)
    channels, height, width = found.input_size
    print(f"{found.name}: {len(found.classes)} classes, images {channels}x{height}x{width} (channels x height x width)")
    splits = {name: getattr(found, name) for name in ("train", "validation", "test")}
    wide = min(60, max(23, *map(len, found.classes))) + 1
    print(f"{'class':<{wide}}" + "".join(f"{name:>12}" for name in splits))
    counts = {name: torch.bincount(split.labels, minlength=len(found.classes)) for name, split in splits.items()}
    for index, name in enumerate(found.classes):
        print(f"{name:<{wide}.{wide - 1}}" + "".join(f"{int(count[index]):>12,}" for count in counts.values()))
    print(f"{'all':<{wide}}" + "".join(f"{len(split):>12,}" for split in splits.values()))
    print(f"mean {found.mean}, std {found.std} of values in [0, 1]")
    print(f"augmentation: {found.augmentation}")
    for line in _lines_of(found.found):
        print(line)
    if found.skipped:
        print(f"skipped: {found.skipped} images that cannot be decoded")
    if isinstance(found.train, Images):
        for name in ("validation", "test"):
            if same := shared_images(found.train, splits[name]):
                print(f"warning: {same:,} of {len(splits[name]):,} {name} images equal training images")
        if twice := contradicting_images(*splits.values()):
            print(f"warning: {twice:,} images are in several classes")


def _lines_of(found: "Found") -> Iterator[str]:
    """What was read as what, and what was left out, a line each."""
    for part in found.parts:
        yield f"{part.split}: {part.images:,} images from {part.place}"
    missing = {"validation", "test"} - {part.split for part in found.parts}
    if found.parts and missing:
        yield f"taken from train: {', '.join(sorted(missing))}"
    yield from (f"column: {column}" for column in found.columns)
    yield from (f"note: {note}" for note in (*found.doubts, *found.notes))
    for entry in found.left_out:
        yield f"left out: {entry.count:,} {entry.reason} ({entry.example})"
