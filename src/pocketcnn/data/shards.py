"""Opening of a folder of parquet shards as a streamed data set: files checked, row groups set aside for validation."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.decode import Reading, check_shape
from pocketcnn.data.dividing import check_fraction, check_labels, class_index, is_label, moments_of
from pocketcnn.data.folders import find_source
from pocketcnn.data.sets import DataSet
from pocketcnn.data.sources import TEST_NAMES, TRAIN_NAMES, ParquetFolder, columns_of
from pocketcnn.data.stream import RowGroup, Stream
from pocketcnn.errors import BadData
from pocketcnn.support.optional import optional_import


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
) -> DataSet:
    """Opens a folder of parquet files whose images are decoded while they are read.

    Args:
        name: a folder of parquet files in the Hugging Face schema, with the images' bytes inside. File names tell the
            training and the test split. The rows must have been mixed well before they were written, because only
            whole row groups are dealt out.
        validation: fraction of the training images set aside, in (0, 1), in whole row groups until it is reached.
        seed: seed of that division.
        image_size: side in pixels to which images are brought.
        channels: 1 or 3, to read grey or RGB.
        workers: processes that read, for each device; 0 reads in the main process.
        skip_bad_images: leave out images that cannot be decoded; otherwise the first one is an error.
        min_area: least share of an image that a random crop shows, in (0, 1]. Inception uses 0.08, but nets with few
            parameters do better if they see more.
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
    if workers < 0:
        raise ValueError(f"workers must be 0 or more processes, not {workers}")
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area}")
    name = str(name)
    source = find_source(name)
    if not isinstance(source, ParquetFolder):
        raise BadData(f"{name}: streaming reads a folder of parquet files; load() reads everything else")
    found, found_test = _train_and_test(name, source.split_files())
    classes, index = class_index(source.label, found.values, found_test.values, found.classes)
    labels, test_labels = (torch.tensor([index[value] for value in split.values]) for split in (found, found_test))
    check_labels(name, labels, classes, least=1)

    stream: Any = partial(
        Stream, reading=Reading(image_size, channels, skip_bad_images), min_area=min_area, workers=workers
    )
    kept, held_out = _set_aside(source.label, found.groups, validation, seed)
    train, validated = (stream(*_chosen(found.groups, labels, part), found.column) for part in (kept, held_out))
    if missing := sorted(set(labels.tolist()) - set(train.labels.tolist())):
        raise BadData(
            f"{name}: all images of class {classes[missing[0]]!r} are in the row groups set aside for validation; "
            "mix the rows before writing them, or write smaller row groups"
        )
    test = stream(found_test.groups, test_labels, found_test.column)
    mean, std = moments_of(train.sample(2000).images)
    augmentation = replace(default_augmentation(source.label, image_size), crop=0)  # decoding crops already
    options = [validation, seed, image_size, channels, skip_bad_images, min_area]
    fingerprint = _fingerprint(source.root.resolve(), found, found_test, options)
    return DataSet(name, classes, train, validated, test, mean, std, augmentation, fingerprint)


@dataclass(frozen=True)
class _Split:
    """A split as its files describe it: row groups, labels, image column, and class names if the schema has them.

    `values` are the labels as they stand in the files, one for each image.
    """

    groups: list[RowGroup]
    values: list[Any]
    column: str
    classes: tuple[str, ...] | None


def _train_and_test(name: str, files: dict[str, list[str]]) -> tuple[_Split, _Split]:
    """Finds the training split, and a test split that has labels."""
    train_name = next((split for split in TRAIN_NAMES if split in files), None)
    if train_name is None:
        raise BadData(f"{name}: no training split; found {', '.join(files) or 'nothing'}")
    train = _open(files[train_name])
    # Some public test splits have no labels; then the validation split takes their place.
    tests = (_open(files[split]) for split in TEST_NAMES if split in files)
    test = next((found for found in tests if all(is_label(value) for value in found.values)), None)
    if test is None:
        raise BadData(
            f"{name}: streaming needs a test split with labels; found {', '.join(files)}; "
            "add files called test-*.parquet or validation-*.parquet"
        )
    return train, test


def _open(files: list[str]) -> _Split:
    """Reads the schema, the row counts and the labels of a split, but no images."""
    datasets = optional_import("datasets", extra="train", purpose="streaming")
    parquet = optional_import("pyarrow.parquet", extra="train", purpose="streaming")
    groups: list[RowGroup] = []
    values: list[Any] = []
    for path in sorted(files):
        try:
            with parquet.ParquetFile(path) as file:
                image, label, classes = columns_of(datasets.Features.from_arrow_schema(file.schema_arrow), path)
                values += file.read(columns=[label], use_threads=False).column(0).to_pylist()
                counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except BadData:
            raise
        except Exception as error:  # parsers raise many kinds
            raise BadData(f"{path}: not readable as parquet ({error}); copy it again") from error
        begins = np.cumsum([0, *counts]).tolist()
        groups += [RowGroup(path, number, begins[number], rows) for number, rows in enumerate(counts) if rows]
    if not groups:
        raise BadData(f"{', '.join(files)}: no images")
    return _Split(groups, values, image, classes)


def _set_aside(label: str, groups: list[RowGroup], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides row groups: indices of those to train on, and of those for validation.

    Those for validation hold at least `fraction` of all rows.
    """
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(groups))
    rows = np.cumsum([groups[i].rows for i in order])
    count = int(np.searchsorted(rows, fraction * rows[-1])) + 1
    if count >= len(groups):
        raise BadData(
            f"{label}: a validation split of {fraction:g} takes whole row groups, and none of {len(groups)} would remain "
            "for training; write the files with smaller row groups"
        )
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def _chosen(groups: list[RowGroup], labels: Tensor, indices: list[int]) -> tuple[list[RowGroup], Tensor]:
    """Some of the row groups, and the labels of their images."""
    by_group = labels.split([group.rows for group in groups])
    return [groups[i] for i in indices], torch.cat([by_group[i] for i in indices])


def _fingerprint(root: Path, train: _Split, test: _Split, options: list[Any]) -> str:
    """Hashes file names and sizes, row counts, labels and options; reading all images would take too long."""
    groups = [*train.groups, *test.groups]
    shards = sorted({Path(group.file) for group in groups})
    sizes = [[shard.relative_to(root).as_posix(), shard.stat().st_size] for shard in shards]
    described = json.dumps([sizes, [group.rows for group in groups], train.values, test.values, *options])
    return hashlib.sha256(described.encode()).hexdigest()[:16]
