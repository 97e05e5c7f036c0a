"""Data sets as decoded uint8 tensors, cached on disk, split by seed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pocketcnn.data import sources
from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.decode import Reading, read_images
from pocketcnn.data.dividing import TEST_FRACTION, check_labels, divided, fingerprint_of, moments_of
from pocketcnn.data.sets import BUILT_IN, DataSet, Images
from pocketcnn.data.sources import find_source
from pocketcnn.errors import BadData, CannotWrite
from pocketcnn.support.files import make_folder, write_atomically

_log = logging.getLogger(__name__)
_CACHE_VERSION = 2


def load(
    name: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    limit: int | None = None,
    cache: str | Path | None = None,
) -> DataSet:
    """Loads a data set: decoded once, cached in the user's cache folder, split by seed.

    Args:
        name: one of `BUILT_IN`; the id of any image data set on the Hugging Face hub (`"owner/name"`); a folder of
            parquet files; or a folder of class folders of images, with or without `train` and `test` above them.
        validation: fraction of the training images set aside, in (0, 1).
        seed: of that division. A source without a test split gives a fifth of its images to one, by a fixed seed.
        image_size: side in pixels; images are resized by their shorter side and cropped in the centre. Needed where
            they differ in size.
        channels: 1 or 3 converts to grey or RGB; needed where the images are of both kinds.
        skip_bad_images: leave out, and count, images that cannot be decoded; otherwise the first one is an error.
        limit: use at most so many training images, chosen by the seed; for trials.
        cache: folder of decoded data; else `$POCKETCNN_CACHE`, else `pocketcnn` in the user's cache folder.
    Raises:
        UnknownData: no such built-in set or folder, and no such hub id within reach.
        BadImage: an image that cannot be decoded, or that differs from the others in size or colours.
        BadData: labels missing, fewer than two classes, a class without images, or test classes not in training.
        MissingExtra: the packages of the `train` extra are not installed.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a fraction between 0 and 1, not {validation}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, not {limit}")
    name = str(name)
    reading = Reading(image_size, channels, skip_bad_images)
    family = name if name in BUILT_IN else Path(name).resolve().name if Path(name).exists() else name.split("/")[-1]
    if name == "digits":
        stored = sources.read_digits(reading)
    else:
        stored = _cached(name, reading, Path(cache) if cache else _cache_folder())
    train, test, classes = stored.train, stored.test, stored.classes
    check_labels(name, train, classes, least=3 if test is None else 2)
    if test is None:
        train, test = divided(train, TEST_FRACTION, seed=0)
    train, held_out = divided(train, validation, seed=seed + 1)
    if limit is not None:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        train = Images(train.images[chosen], train.labels[chosen])
    mean, std = moments_of(train.images)
    size = min(train.images.shape[2:])
    augmentation = default_augmentation(family, size)
    fingerprint = fingerprint_of(train, held_out, test)
    return DataSet(name, classes, train, held_out, test, mean, std, augmentation, fingerprint, stored.skipped)


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
    """All images below a folder, with what a trained net takes them for in place of labels.

    A fifth of them is put aside as test images, and of the rest a share for validation; accuracy on them is how often a net
    agrees with the one that answered. Nothing is cached.

    Args:
        folder: with image files, in whatever folders.
        answer: the classes' numbers [n] of uint8 images [n, channels, height, width].
        classes: their names.
        mean: per channel, of images scaled to [0, 1], as the net that answers normalises them; so is `std`.
        std: per channel.
        input_size: (channels, height, width) that images are brought to, by their shorter side and a crop of the centre.
        validation: fraction of the images that are not test images, in (0, 1).
        skip_bad_images: leave out, and count, images that cannot be decoded; otherwise the first one is an error.
    Raises:
        BadImage: an image that cannot be decoded.
        BadData: no such folder, fewer than three images, or `input_size` is not square.
        ValueError: `validation` out of range.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a fraction between 0 and 1, not {validation}")
    folder = Path(folder)
    if not folder.is_dir():
        raise BadData(f"{folder}: there is no such folder of images")
    channels, height, width = input_size
    if height != width:
        raise BadData(f"{folder}: images can be brought to squares only, the net takes {height} x {width}")
    pixels, skipped = read_images(folder, Reading(height, channels, skip_bad_images))
    if len(pixels) < 3:
        raise BadData(f"{folder}: {len(pixels)} images in it; three or more can be divided for training and two tests")
    # As if of one class: which image is a test image must not depend on what the net takes it for.
    places = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    rest, test = divided(places, TEST_FRACTION, seed=0)
    train, held_out = (_answered(part, answer) for part in divided(rest, validation, seed=1))
    test = _answered(test, answer)
    augmentation = default_augmentation(folder.resolve().name, height)
    moments = (tuple(mean), tuple(std))
    fingerprint = fingerprint_of(train, held_out, test)
    name = f"{folder}, as the teacher sees it"
    return DataSet(name, tuple(classes), train, held_out, test, *moments, augmentation, fingerprint, skipped)


def _answered(images: Images, answer: Callable[[Tensor], Tensor]) -> Images:
    return Images(images.images, torch.cat([answer(batch) for batch in images.images.split(500)]))


def _cache_folder() -> Path:
    if chosen := os.environ.get("POCKETCNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketcnn"


def _cached(name: str, reading: Reading, folder: Path) -> sources.Decoded:
    source = find_source(name)
    described = json.dumps(
        [_CACHE_VERSION, source.fingerprint(), reading.image_size, reading.channels, reading.skip_bad]
    )
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = folder / f"{source.label}-{key}.safetensors"
    if path.exists():
        try:
            return _read_cache(path)
        except (SafetensorError, KeyError, ValueError):
            _log.warning("%s is damaged and will be made again", path)
    decoded = source.decode(reading)
    tensors = {"train_images": decoded.train.images, "train_labels": decoded.train.labels}
    if decoded.test is not None:
        tensors |= {"test_images": decoded.test.images, "test_labels": decoded.test.labels}
    metadata = {"classes": json.dumps(decoded.classes), "skipped": str(decoded.skipped)}
    try:
        write_atomically(make_folder(folder) / path.name, serialize(tensors, metadata))
    except CannotWrite as error:
        _log.warning("not cached: %s; $POCKETCNN_CACHE names another folder", error)
    return decoded


def _read_cache(path: Path) -> sources.Decoded:
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        train = Images(file.get_tensor("train_images"), file.get_tensor("train_labels"))
        test = (
            Images(file.get_tensor("test_images"), file.get_tensor("test_labels")) if "test_images" in names else None
        )
    return sources.Decoded(train, test, tuple(json.loads(metadata["classes"])), int(metadata["skipped"]))
