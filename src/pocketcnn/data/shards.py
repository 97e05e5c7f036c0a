"""Opening of a folder of parquet shards as a streamed data set: files checked, row groups set aside for validation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.columns import Asked, alike
from pocketcnn.data.decode import Reading, bits_of, check_bits, check_shape, in_one_range
from pocketcnn.data.dividing import check_fraction, check_labels, class_index, moments_of
from pocketcnn.data.folders import find_source
from pocketcnn.data.found import Found, log_found
from pocketcnn.data.sets import DataSet, reading_of
from pocketcnn.data.sources import ParquetFolder, check_training, roles_of
from pocketcnn.data.stream import RowGroup, Stream
from pocketcnn.data.tables import Shard, Table
from pocketcnn.errors import BadData

_Part = tuple[list[RowGroup], Tensor]  # row groups of a split, and the labels of its images


def open_stream(
    name: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int,
    channels: int = 3,
    workers: int = 0,
    skip_bad_images: bool = False,
    min_area: float = 0.35,
    image_column: str | None = None,
    label_column: str | None = None,
    bits: int | None = None,
) -> DataSet:
    """Opens a folder of parquet files whose images are decoded while they are read.

    Args:
        name: a folder of parquet files with the images' bytes inside. File names tell the splits. The rows must have
            been mixed well before they were written, because only whole row groups are dealt out.
        validation: fraction of the training images set aside, in (0, 1), in whole row groups until it is reached; not
            used if the folder has a validation split beside its test split.
        seed: seed of that division.
        image_size: side in pixels to which images are brought.
        channels: 1 or 3, to read grey or RGB.
        workers: processes that read, for each device; 0 reads in the main process.
        skip_bad_images: leave out images that cannot be decoded; otherwise the first one is an error.
        min_area: least share of an image that a random crop shows, in (0, 1]. Inception uses 0.08, but nets with few
            parameters do better if they see more.
        image_column: column of the images; needed if several may hold them.
        label_column: column of the labels; needed if several may hold them.
        bits: bits that pixels of more than 8 bits use: 8, 10, 12, 14 or 16; by default the fewest that hold the largest
            value of 2,000 training images, which is logged. An image that needs more counts as bad.
    Returns:
        A data set whose splits are `Stream`s; `mean` and `std` are those of 2,000 training images.
    Raises:
        UnknownData: there is no such folder.
        BadData: no parquet files, no test split, labels missing, a class without training images, or too few row
            groups to set some aside.
        MissingExtra: the packages of the `train` extra are not installed.
    """
    check_fraction(validation)
    check_shape(image_size, channels)
    check_bits(bits)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more processes, not {workers}")
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area}")
    name = str(name)
    source = find_source(name, Asked(image_column, label_column))
    if not isinstance(source, ParquetFolder):
        raise BadData(f"{name}: streaming reads a folder of parquet files; load() reads everything else")
    table = source.table
    splits, notes = _splits_by_role(name, table)
    own = [value for role, split in splits.items() if role != "train" for value in split.values]
    classes, index = class_index(source.label, splits["train"].values, own, table.meaning.classes)
    parts = {
        role: (split.groups, torch.tensor([index[value] for value in split.values])) for role, split in splits.items()
    }
    check_labels(name, parts["train"][1], classes, least=1)
    if "validation" not in parts:
        parts |= _set_aside(source.label, parts["train"], classes, validation, seed)

    stream: Any = partial(Stream, column=table.image, min_area=min_area, workers=workers)
    reading = Reading(image_size, channels, skip_bad_images, bits)
    sample, _ = stream(*parts["train"], reading=reading).decoded_sample(2000)
    [converted], deep = in_one_range([sample])
    reading = replace(reading, bits=bits or bits_of(sample) or 8)
    train, validated, test = (stream(*parts[role], reading=reading) for role in ("train", "validation", "test"))
    mean, std = moments_of(torch.from_numpy(np.stack(converted)))
    augmentation = replace(default_augmentation(source.label, image_size), crop=0)  # decoding crops already
    options: list[Any] = [validation, seed, image_size, channels, skip_bad_images, min_area]
    options += [[image_column, label_column]] if source.asked else []
    options += [reading.bits] if reading.bits != 8 else []
    fingerprint = _fingerprint(source, splits, index, options)
    found = source.found + table.found + deep + Found(notes=notes, doubts=alike(classes))
    log_found(name, found)
    asked_for = reading_of(image_column, label_column, bits or found.bits)
    return DataSet(
        name, classes, train, validated, test, mean, std, augmentation, fingerprint, found=found, reading=asked_for
    )


@dataclass(frozen=True)
class _Split:
    """A split as its files describe it: its row groups, and the labels of all rows, None where there is none."""

    groups: list[RowGroup]
    values: list[Any]


def _splits_by_role(name: str, table: Table) -> tuple[dict[str, _Split], tuple[str, ...]]:
    """The splits for training and testing, and for validation if there is one; with lines on how they were found."""
    check_training(name, table.splits)
    splits = {split: _Split(_row_groups(shards), table.labels(split)) for split, shards in table.splits.items()}
    roles, notes = roles_of(name, {split: found.values for split, found in splits.items()})
    if "test" not in roles:
        raise BadData(
            f"{name}: streaming needs a test split with labels; found {', '.join(splits)}; "
            "add files called test-*.parquet or validation-*.parquet"
        )
    if "validation" in roles:
        notes += ("its own validation split is used; `validation` is not",)
    return {"train": splits["train"]} | {role: splits[split] for role, split in roles.items()}, notes


def _row_groups(shards: Sequence[Shard]) -> list[RowGroup]:
    """The row groups of some files that hold rows, in order."""
    groups = []
    for shard in shards:
        begins = np.cumsum([0, *shard.groups]).tolist()
        groups += [
            RowGroup(shard.file, number, begins[number], rows) for number, rows in enumerate(shard.groups) if rows
        ]
    return groups


def _set_aside(label: str, train: _Part, classes: tuple[str, ...], fraction: float, seed: int) -> dict[str, _Part]:
    """Divides row groups and labels of the training split: those to train on, and those for validation.

    Those for validation hold at least `fraction` of all rows.
    """
    groups, labels = train
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(groups))
    rows = np.cumsum([groups[i].rows for i in order])
    count = int(np.searchsorted(rows, fraction * rows[-1])) + 1
    if count >= len(groups):
        raise BadData(
            f"{label}: a validation split of {fraction:g} takes whole row groups, and none of {len(groups)} would remain "
            "for training; write the files with smaller row groups"
        )
    kept, held_out = (_chosen(groups, labels, sorted(part.tolist())) for part in (order[count:], order[:count]))
    if missing := sorted(set(labels.tolist()) - set(kept[1].tolist())):
        raise BadData(
            f"{label}: all images of class {classes[missing[0]]!r} are in the row groups set aside for validation; "
            "mix the rows before writing them, or write smaller row groups"
        )
    return {"train": kept, "validation": held_out}


def _chosen(groups: list[RowGroup], labels: Tensor, indices: list[int]) -> _Part:
    """Some of the row groups, and the labels of their images."""
    by_group = labels.split([group.rows for group in groups])
    return [groups[i] for i in indices], torch.cat([by_group[i] for i in indices])


def _fingerprint(source: ParquetFolder, splits: dict[str, _Split], index: dict[Any, int], options: list[Any]) -> str:
    """Hashes file names and sizes, row counts, labels and options; reading all images would take too long."""
    groups = [group for split in splits.values() for group in split.groups]
    shards = sorted({group.file for group in groups})
    sizes = [
        [Path(shard).relative_to(source.root.absolute()).as_posix(), Path(shard).stat().st_size] for shard in shards
    ]
    # Labels that are indices of names, and numbers without names, stand here as they do in right files.
    named = source.table.meaning.classes is not None
    values = [[index[value] for value in split.values] if named else split.values for split in splits.values()]
    described = json.dumps([sizes, [group.rows for group in groups], *values, *options])
    return hashlib.sha256(described.encode()).hexdigest()[:16]
