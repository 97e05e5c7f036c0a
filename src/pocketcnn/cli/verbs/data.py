"""`pocketcnn data`: loads a data set and shows the images of each class in each split."""

from collections.abc import Sequence
from dataclasses import dataclass

from pocketcnn.cli.arguments import DataOptions, load_data
from pocketcnn.cli.parsing import data_help, parse


def data(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Data(DataOptions):
        data: Positional[str]
        """Built-in name, hub id, folder of parquet files or of class folders."""

    given = parse(Data, words, "data", data_help)
    import torch

    found = load_data(given)
    channels, height, width = found.input_size
    print(f"{found.name}: {len(found.classes)} classes, images {channels}x{height}x{width} (channels x height x width)")
    splits = {name: getattr(found, name) for name in ("train", "validation", "test")}
    print(f"{'class':<24}" + "".join(f"{name:>12}" for name in splits))
    counts = {name: torch.bincount(split.labels, minlength=len(found.classes)) for name, split in splits.items()}
    for index, name in enumerate(found.classes):
        print(f"{name:<24.24}" + "".join(f"{int(count[index]):>12,}" for count in counts.values()))
    print(f"{'all':<24}" + "".join(f"{len(split):>12,}" for split in splits.values()))
    print(f"mean {found.mean}, std {found.std} of values in [0, 1]")
    print(f"augmentation: {found.augmentation}")
    if found.skipped:
        print(f"skipped: {found.skipped} images that cannot be decoded")
