"""Data sets of images that a program has already: tensors, arrays, or a data set of torch."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.dividing import TEST_FRACTION, check_fraction, check_labels, divided, fingerprint_of, moments_of
from pocketcnn.data.sets import DataSet, Images
from pocketcnn.errors import BadData

Pair = tuple[Any, Any]
_log = logging.getLogger(__name__)


def from_tensors(
    images: Any,
    labels: Any,
    *,
    test: Pair | None = None,
    validation: Pair | float = 0.1,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    name: str = "tensors",
) -> DataSet:
    """Makes a data set of images in memory, for `fit`, `distil`, `evaluate` and all else that takes one.

    Args:
        images: [n, channels, height, width] or [n, height, width], a tensor or an array: uint8, or floats in [0, 1], which are
            rounded to 256 values. They are not normalised: the net gets them normalised by `mean` and `std`.
        labels: [n], whole numbers from 0.
        test: images and labels of the test split, likewise; by default a fifth of the images, by a fixed seed.
        validation: images and labels of the validation split; or the fraction of the training images that is set aside.
        classes: names of the classes, in the order of the labels; by default their numbers.
        mean: per channel, of images scaled to [0, 1]; by default that of the training images.
        std: standard deviation, likewise.
        seed: of the division.
        name: for messages and records.
    Raises:
        BadData: images or labels of another kind or shape; or fewer than two classes, or one without images.
        ValueError: a fraction outside (0, 1), or another number of means or deviations than of channels.
    Example:
        >>> from_tensors(torch.zeros(40, 8, 8), torch.arange(40) % 4)
        DataSet(tensors: 28 training, 4 validation and 8 test images of 1x8x8, 4 classes)
    """
    train = _split(images, labels, name)
    found = tuple(map(str, classes or range(int(train.labels.max()) + 1 if len(train) else 0)))
    given = [_split(*pair, name) if isinstance(pair, tuple) else None for pair in (validation, test)]
    check_labels(name, _known(train, found, name).labels, found, least=1 + given.count(None))
    held_out, tested = given
    if tested is None:
        train, tested = divided(train, TEST_FRACTION, seed=0)
    if not isinstance(validation, tuple):
        check_fraction(float(validation))
        train, held_out = divided(train, float(validation), seed=seed + 1)
    assert held_out is not None
    for split in (held_out, tested):
        if _known(split, found, name).image_shape != train.image_shape:
            raise BadData(f"{name}: images of {_size(split)} beside images of {_size(train)}; make all of one size")
    moments = moments_of(train.images)
    own = tuple(moments[0] if mean is None else map(float, mean)), tuple(moments[1] if std is None else map(float, std))
    if {len(own[0]), len(own[1])} != {train.image_shape[0]}:
        raise ValueError(f"{name}: give a mean and a std for each of the {train.image_shape[0]} channels")
    augmentation = default_augmentation(name, min(train.image_shape[1:]))
    return DataSet(name, found, train, held_out, tested, *own, augmentation, fingerprint_of(train, held_out, tested))


def from_dataset(
    train: "Dataset[Any]",
    *,
    test: "Dataset[Any] | None" = None,
    validation: "Dataset[Any] | float" = 0.1,
    classes: Sequence[str] | None = None,
    **settings: Any,
) -> DataSet:
    """Makes a data set of one of torch's, whose items are an image and a label.

    Every item is read once and kept in memory. An image is a PIL image, an array or a tensor, as `from_tensors` takes many,
    before normalisation: leave `Normalize` and random transforms out of the transforms.

    Args:
        train: the training images.
        test: the test images; by default a fifth of the others.
        validation: the validation images, or the fraction of the training images that is set aside.
        classes: names of the classes; by default the attribute `classes` of `train` if it has one.
        **settings: `mean`, `std`, `seed` and `name` of `from_tensors`.
    Raises:
        BadData: an item is no image with a label, images differ in size, or as in `from_tensors`.
    """
    name = settings.setdefault("name", type(train).__name__)
    return from_tensors(
        *_read(train, name),
        validation=_read(validation, name)
        if isinstance(validation, Dataset) or hasattr(validation, "__len__")
        else float(validation),
        test=None if test is None else _read(test, name),
        classes=classes or getattr(train, "classes", None),
        **settings,
    )


def _read(data: Any, name: str) -> Pair:
    """Reads all items of a data set of torch; returns images [n, ...] and labels [n]."""
    images: list[Tensor] = []
    labels: list[int] = []
    for number in range(len(data)):
        item = data[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BadData(f"{name}: item {number} is a {type(item).__name__}, not an image and a label")
        image, label = item
        if not isinstance(image, Tensor):
            if getattr(image, "mode", "L") not in ("L", "RGB"):  # PIL's palettes, transparency and the like
                image = image.convert("RGB")
            pixels = np.asarray(image)
            if pixels.ndim == 3 and not isinstance(image, np.ndarray):
                pixels = pixels.transpose(2, 0, 1)  # PIL's images have their channels last
            image = torch.from_numpy(np.ascontiguousarray(pixels))
        if images and image.shape != images[0].shape:
            raise BadData(
                f"{name}: image {number} is {list(image.shape)}, others are {list(images[0].shape)}; resize all to one size"
            )
        images.append(image)
        labels.append(int(label))
    if not images:
        raise BadData(f"{name}: there are no images in it")
    return torch.stack(images), torch.tensor(labels)


def _split(images: Any, labels: Any, name: str) -> Images:
    """Checks images and labels, and converts them to uint8 and int64."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4 or len(images) == 0:
        raise BadData(f"{name}: images are {list(images.shape)}; give [n, channels, height, width]")
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        raise BadData(f"{name}: images are {list(images.shape)}, with channels last; give images.permute(0, 3, 1, 2)")
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        if not 0 <= low <= high <= 1:
            raise BadData(
                f"{name}: images are from {low:.4g} to {high:.4g}; give uint8, or floats in [0, 1] before they are normalised"
            )
        images = (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise BadData(f"{name}: images are {images.dtype}; give uint8, or floats in [0, 1]")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex():
        raise BadData(
            f"{name}: labels are {labels.dtype} of shape {list(labels.shape)}; give a whole number for each of the "
            f"{len(images)} images"
        )
    return Images(images.cpu().contiguous(), labels.cpu().long())


def _known(split: Images, classes: Sequence[str], name: str) -> Images:
    """Checks that each label is the number of a class."""
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= len(classes):
        raise BadData(f"{name}: labels from {low} to {high}, but {len(classes)} classes, numbered from 0")
    return split


def _size(split: Images) -> str:
    return "x".join(map(str, split.image_shape))
