"""A stream's folder of parquet files: opened, checked, and a part set aside for validation."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.decode import Reading
from pocketcnn.data.dividing import check_labels, class_index, is_label, moments_of
from pocketcnn.data.sets import DataSet, Images
from pocketcnn.data.sources import TEST_NAMES, TRAIN_NAMES, ParquetFolder, columns_of, find_source, without_bars
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
        name: a folder of parquet files in the Hugging Face schema, with the images' bytes inside, whose names tell a
            training and a test split. Mixed well before they were written: only whole row groups are dealt out.
        validation: fraction of the training images set aside, in (0, 1); whole row groups, until it is reached.
        seed: of that division.
        image_size: side in pixels that images are brought to.
        channels: 1 or 3, to read grey or RGB.
        workers: processes that read, for each device; 0 reads in the main process.
        skip_bad_images: leave out images that cannot be decoded; otherwise the first one is an error.
        min_area: least share of an image that a random crop shows, in (0, 1]; 0.08 is that of Inception, but nets
            with few parameters do better seeing more.
    Returns:
        A data set whose splits are `Stream`s; mean and std are those of 2,000 training images.
    Raises:
        UnknownData: there is no such folder.
        BadData: no parquet files, no test split, labels missing, a class without training images, or too few row
            groups to set some aside.
        MissingExtra: the packages of the `train` extra are not installed.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a fraction between 0 and 1, not {validation}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more processes, not {workers}")
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area}")
    source = find_source(str(name))
    if not isinstance(source, ParquetFolder):
        raise BadData(f"{name}: streaming reads a folder of parquet files; load() reads everything else")
    files = _split_files(source)
    train_name = next((split for split in TRAIN_NAMES if split in files), None)
    if train_name is None:
        raise BadData(f"{name}: no training split; found {', '.join(files) or 'nothing'}")
    groups, values, column, names = _open(files[train_name])
    # Public test splits sometimes come without labels; then the validation split is the one to report.
    tests = (_open(files[split]) for split in TEST_NAMES if split in files)
    test = next((found for found in tests if all(is_label(value) for value in found[1])), None)
    if test is None:
        raise BadData(
            f"{name}: streaming needs a test split with labels; found {', '.join(files)}; "
            "add files called test-*.parquet or validation-*.parquet"
        )
    test_groups, test_values, test_column, _ = test
    classes, index = class_index(source.label, values, test_values, names)
    labels = torch.tensor([index[value] for value in values])
    every: Any = Images(torch.empty(0), labels)
    check_labels(str(name), every, classes, least=1)

    stream: Any = partial(
        Stream, reading=Reading(image_size, channels, skip_bad_images), min_area=min_area, workers=workers
    )
    by_group = labels.split([group.rows for group in groups])
    train, held_out = (
        stream([groups[i] for i in part], torch.cat([by_group[i] for i in part]), column)
        for part in _set_aside(source.label, groups, validation, seed)
    )
    if missing := sorted(set(labels.tolist()) - set(train.labels.tolist())):
        raise BadData(
            f"{name}: all images of class {classes[missing[0]]!r} are in the row groups set aside for validation; "
            "mix the rows before writing them, or write smaller row groups"
        )
    test = stream(test_groups, torch.tensor([index[value] for value in test_values]), test_column)
    mean, std = moments_of(train.sample(2000).images)
    augmentation = replace(default_augmentation(source.label, image_size), crop=0)  # cropped as it is decoded
    shards = sorted({Path(group.file) for group in (*groups, *test_groups)})
    described = json.dumps([
        [[shard.relative_to(source.root.resolve()).as_posix(), shard.stat().st_size] for shard in shards],
        [group.rows for group in (*groups, *test_groups)], values, test_values,
        validation, seed, image_size, channels, skip_bad_images, min_area,
    ])  # fmt: skip
    fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
    return DataSet(str(name), classes, train, held_out, test, mean, std, augmentation, fingerprint)


def _split_files(source: ParquetFolder) -> dict[str, list[str]]:
    """Files by split; their names tell it, as on the hub."""
    datasets = optional_import("datasets", extra="train", purpose="streaming")
    with without_bars(datasets):
        found = datasets.load_dataset_builder(str(source.root.resolve())).config.data_files
    return {str(split): sorted(map(str, files)) for split, files in found.items()}


def _open(files: list[str]) -> tuple[list[RowGroup], list[Any], str, tuple[str, ...] | None]:
    """A split's row groups, labels, image column, and the classes' names where the schema has them."""
    datasets = optional_import("datasets", extra="train", purpose="streaming")
    parquet = optional_import("pyarrow.parquet", extra="train", purpose="streaming")
    groups: list[RowGroup] = []
    labels: list[Any] = []
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                image, label, names = columns_of(datasets.Features.from_arrow_schema(file.schema_arrow), path)
                labels += file.read(columns=[label], use_threads=False).column(0).to_pylist()
                counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except BadData:
            raise
        except Exception as error:  # parsers raise many kinds
            raise BadData(f"{path}: not readable as parquet ({error}); copy it again") from error
        begins = np.cumsum([0, *counts]).tolist()
        groups += [RowGroup(path, number, begins[number], rows) for number, rows in enumerate(counts) if rows]
    if not groups:
        raise BadData(f"{', '.join(files)}: no images")
    return groups, labels, image, names


def _set_aside(label: str, groups: list[RowGroup], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the row groups to train on, and of those that hold at least `fraction` of all rows, for validation."""
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(groups))
    rows = np.cumsum([groups[i].rows for i in order])
    count = int(np.searchsorted(rows, fraction * rows[-1])) + 1
    if count >= len(groups):
        raise BadData(
            f"{label}: a validation split of {fraction:g} takes whole row groups, and none of {len(groups)} would remain "
            "for training; write the files with smaller row groups"
        )
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())
