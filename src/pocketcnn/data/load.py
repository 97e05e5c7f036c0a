"""Loading of data sets that fit in memory: decoded to uint8 tensors, cached on disk, split by seed."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.cache import cache_folder, decoded_once
from pocketcnn.data.columns import Asked
from pocketcnn.data.decode import RawImage, Reading, check_bits, check_shape, decode_all, in_one_range
from pocketcnn.data.dividing import TEST_FRACTION, check_fraction, check_labels, divided, fingerprint_of, moments_of
from pocketcnn.data.found import log_found, printable
from pocketcnn.data.sets import BUILT_IN, DataSet, Images, reading_of
from pocketcnn.data.sources import read_digits
from pocketcnn.data.walk import image_files
from pocketcnn.errors import BadData

_log = logging.getLogger(__name__)


def load(
    name: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    bits: int | None = None,
    cache: str | Path | None = None,
) -> DataSet:
    """Loads a data set. It is decoded once, cached in the user's cache folder, and split by a seed.

    Args:
        name: one of `BUILT_IN`; the id of any image data set on the Hugging Face hub (`"owner/name"`); a folder of
            parquet files; or a folder of class folders of images, with or without `train` and `test` above them.
        validation: fraction of the training images set aside, in (0, 1).
        seed: seed of that division. If the source has no test split, a fifth of its images become one, by a fixed seed.
        image_size: side in pixels; images are resized by their shorter side and cropped in the centre. Needed if they
            differ in size.
        channels: 1 or 3 converts to grey or RGB; needed if some images are grey and some RGB.
        skip_bad_images: leave out, and count, images that cannot be decoded; otherwise the first one is an error.
        limit: largest number of training images, chosen by the seed; for trials.
        image_column: column of the images in tables; needed if several may hold them.
        label_column: column of the labels in tables; needed if several may hold them.
        bits: bits that pixels of more than 8 bits use: 8, 10, 12, 14 or 16; by default the fewest that hold the largest
            value of all images, which is logged.
        cache: folder of decoded data; else `$POCKETCNN_CACHE`, else `pocketcnn` in the user's cache folder.
    Raises:
        UnknownData: no such built-in set or folder, and no such hub id within reach.
        BadImage: an image that cannot be decoded, or that differs from the others in size or colours.
        BadData: labels missing, fewer than two classes, a class without images, or test classes not in training.
        MissingExtra: the packages of the `train` extra are not installed.
    """
    check_fraction(validation)
    check_shape(image_size, channels)
    check_bits(bits)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, not {limit}")
    name = str(name)
    reading = Reading(image_size, channels, skip_bad_images, bits)
    asked = Asked(image_column, label_column)
    family = name if name in BUILT_IN else Path(name).resolve().name if os.path.exists(name) else name.split("/")[-1]
    if name in BUILT_IN and os.path.isdir(name):
        other = f"the built-in data set is read, not the folder; pass ./{name} for that"
        mine = f"the folder is read, not the built-in data set; pass {BUILT_IN[name]} for that"
        _log.warning("%s: %s", name, other if name == "digits" else mine)
    if name == "digits":
        if asked:
            raise BadData("digits: it has no columns; leave out --image-column and --label-column")
        stored = read_digits(reading)
    else:
        stored = decoded_once(name, reading, asked, Path(cache) if cache else cache_folder())
    train, test, classes = stored.train, stored.test, stored.classes
    check_labels(name, train.labels, classes, least=1 + (test is None) + (stored.validation is None))
    found = stored.found
    log_found(name, found)
    if test is None:
        train, test = divided(train, TEST_FRACTION, seed=0)
    if stored.validation is None:
        train, held_out = divided(train, validation, seed=seed + 1)
    else:
        held_out = stored.validation
        _log.info("%s: its own validation split of %d images is used; `validation` is not", name, len(held_out))
    if limit is not None:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        train = Images(train.images[chosen], train.labels[chosen])
    mean, std = moments_of(train.images)
    size = min(train.images.shape[2:])
    augmentation = default_augmentation(family, size)
    fingerprint = fingerprint_of(train, held_out, test)
    asked_for = reading_of(image_column, label_column, bits or found.bits)
    return DataSet(
        name, classes, train, held_out, test, mean, std, augmentation, fingerprint, stored.skipped, found, asked_for
    )


def load_unlabelled(
    folder: str | Path,
    answer: Callable[[Tensor], Tensor],
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int, int],
    validation: float = 0.1,
    skip_bad_images: bool = False,
) -> DataSet:
    """Loads all images below a folder, and labels them with the answers of a trained net, the teacher.

    A fifth of the images become the test split, and a fraction of the rest the validation split. Accuracy on these
    splits tells how often a net agrees with the teacher. Nothing is cached.

    Args:
        folder: folder of image files, at any depth.
        answer: function that labels a batch: given uint8 images [n, channels, height, width], it returns the class
            indices [n] that the teacher predicts.
        classes: names of the classes.
        mean: mean per channel, of images scaled to [0, 1], with which the teacher normalises its images.
        std: standard deviation per channel, likewise.
        input_size: (channels, height, width) of the result; images are resized by their shorter side and cropped in
            the centre.
        validation: fraction of the images outside the test split that is set aside, in (0, 1).
        skip_bad_images: leave out, and count, images that cannot be decoded; otherwise the first one is an error.
    Raises:
        BadImage: an image that cannot be decoded.
        BadData: no such folder, fewer than three images, or `input_size` is not square.
        ValueError: `validation` out of range.
    """
    check_fraction(validation)
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise BadData(f"{folder}: there is no such folder of images; check the path")
    channels, height, width = input_size
    if height != width:
        raise BadData(f"{folder}: the net takes {height} x {width} pixels, but images can only be resized to squares")
    files, found = image_files(folder)
    raw = (RawImage(printable(file), file, None) for file in files)
    images, _, skipped = decode_all(raw, Reading(height, channels, skip_bad_images))
    [decoded], deep = in_one_range([images])
    found += deep
    log_found(printable(folder), found)
    if len(decoded) < 3:
        raise BadData(f"{printable(folder)}: {len(decoded)} images in it; three or more are needed, one for each split")
    pixels = torch.from_numpy(np.stack(decoded))
    # All images count as one class here: the division must not depend on the teacher's answers.
    unlabelled = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    rest, test = divided(unlabelled, TEST_FRACTION, seed=0)
    train, held_out = (_pseudo_labelled(part, answer) for part in divided(rest, validation, seed=1))
    test = _pseudo_labelled(test, answer)
    augmentation = default_augmentation(folder.resolve().name, height)
    moments = (tuple(mean), tuple(std))
    fingerprint = fingerprint_of(train, held_out, test)
    name = f"{folder}, as the teacher sees it"
    return DataSet(name, tuple(classes), train, held_out, test, *moments, augmentation, fingerprint, skipped, found)


def _pseudo_labelled(images: Images, answer: Callable[[Tensor], Tensor]) -> Images:
    return Images(images.images, torch.cat([answer(batch) for batch in images.images.split(500)]))
