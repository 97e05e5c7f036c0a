"""`pocketcnn data`: loads a data set and shows what was read as what, and the images of each class in each split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketcnn.cli.arguments import AnswerOptions, DataOptions, load_data
from pocketcnn.cli.parsing import data_help, parse
from pocketcnn.cli.printing import answer

if TYPE_CHECKING:
    from pocketcnn.data.found import Found


def data(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Data(AnswerOptions, DataOptions):
        data: Positional[str]
        """Built-in name, hub id, folder of parquet files or of class folders."""

    given = parse(Data, words, "data", data_help)
    import torch

    from pocketcnn.data import Images
    from pocketcnn.data.dividing import contradicting_images, shared_images

    found = load_data(given)
    channels, height, width = found.input_size
    lines = [
        f"{found.name}: {len(found.classes)} classes, images {channels}x{height}x{width} (channels x height x width)"
    ]
    splits = {name: getattr(found, name) for name in ("train", "validation", "test")}
    wide = min(60, max(23, *map(len, found.classes))) + 1
    lines.append(f"{'class':<{wide}}" + "".join(f"{name:>12}" for name in splits))
    counts = {name: torch.bincount(split.labels, minlength=len(found.classes)) for name, split in splits.items()}
    rows = [
        {"class": name, **{split: int(count[index]) for split, count in counts.items()}}
        for index, name in enumerate(found.classes)
    ]
    lines += [f"{row['class']:<{wide}.{wide - 1}}" + "".join(f"{row[split]:>12,}" for split in splits) for row in rows]
    lines += [
        f"{'all':<{wide}}" + "".join(f"{len(split):>12,}" for split in splits.values()),
        f"mean {found.mean}, std {found.std} of values in [0, 1]",
        f"augmentation: {found.augmentation}",
        *_lines_of(found.found),
    ]
    if found.skipped:
        lines.append(f"skipped: {found.skipped} images that cannot be decoded")
    shared: dict[str, int] = {}
    contradicting = 0
    if isinstance(found.train, Images):
        shared = {name: shared_images(found.train, splits[name]) for name in ("validation", "test")}
        contradicting = contradicting_images(*splits.values())
    for name, same in shared.items():
        if same:
            lines.append(f"warning: {same:,} of {len(splits[name]):,} {name} images equal training images")
    if contradicting:
        lines.append(f"warning: {contradicting:,} images are in several classes")
    answer(
        "\n".join(lines), rows, name=found.name, input_size=found.input_size, mean=found.mean, std=found.std,
        augmentation=found.augmentation, found=found.found, skipped=found.skipped, shared_images=shared,
        images_in_several_classes=contradicting,
    )  # fmt: skip


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
