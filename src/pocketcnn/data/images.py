"""Data sets as decoded uint8 tensors, cached on disk, split by seed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pocketcnn.data import sources
from pocketcnn.data.augment import Augmentation, default_augmentation
from pocketcnn.data.sources import Reading
from pocketcnn.errors import BadData, CannotWrite, UnknownData
from pocketcnn.support.files import make_folder, write_atomically

_log = logging.getLogger(__name__)
_CACHE_VERSION = 2
_TEST_FRACTION = 0.2  # of a source that has no test split, drawn with a seed of its own

BUILT_IN = {
    "digits": "scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no download",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}


@dataclass(frozen=True)
class Images:
    """Images [n, channels, height, width] as uint8, and their labels [n] as int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: Any) -> tuple[Tensor, Tensor]:
        """An image, or those of a slice or a tensor of numbers, and the labels."""
        return self.images[which], self.labels[which]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def steps(self, batch_size: int, world: int = 1) -> int:
        """Training steps of an epoch on `world` devices: what does not fill a batch on all of them is left out."""
        return max(1, len(self) // (batch_size * world))

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch of training, for one of `world` devices, from step `start` on.

        Together the devices see the batches that one device would see with `world` times the batch size.

        Args:
            batch_size: images per step and device; less where the devices' shares are smaller.
            seed: of the order.
            epoch: which has an order of its own.
            start: steps that are left out.
            rank: which device this is.
            world: how many there are.
        """
        order = torch.randperm(len(self), generator=generator_of(seed, epoch))
        batch = min(batch_size, len(self) // world)
        for step in range(start, self.steps(batch_size, world)):
            first = (step * world + rank) * batch
            chosen = order[first : first + batch]
            yield self[chosen]

    def in_order(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """All images from first to last in batches, each on one of `world` devices."""
        own = torch.arange(rank, len(self), world)
        for chosen in own.split(batch_size):
            yield self[chosen]

    def sample(self, count: int) -> "Images":
        """About `count` images, evenly from first to last."""
        every = max(1, len(self) // count)
        return Images(*self[::every])


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training: three splits, the classes' names, and what normalises the images.

    A split is `Images` in memory, or a `Stream` that is decoded while it is read. `mean` and `std` are per channel, of
    training images scaled to [0, 1]. `augmentation` suits the images. `test` is for the very end of a training; choices
    are made on `validation`. `skipped` counts images that could not be decoded. `fingerprint` changes when the images, the
    labels or the splits do.
    """

    name: str
    classes: tuple[str, ...]
    train: Any
    validation: Any
    test: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    fingerprint: str
    skipped: int = 0

    def __deepcopy__(self, memo: Any) -> "DataSet":
        return self  # it does not change, and is large

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape


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
    _check_labels(name, train, classes, least=3 if test is None else 2)
    if test is None:
        train, test = _divide(train, _TEST_FRACTION, seed=0)
    train, held_out = _divide(train, validation, seed=seed + 1)
    if limit is not None:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        train = Images(train.images[chosen], train.labels[chosen])
    mean, std = _moments(train.images)
    size = min(train.images.shape[2:])
    augmentation = default_augmentation(family, size)
    fingerprint = _fingerprint(train, held_out, test)
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
    pixels, skipped = sources.read_images(folder, Reading(height, channels, skip_bad_images))
    if len(pixels) < 3:
        raise BadData(f"{folder}: {len(pixels)} images in it; three or more can be divided for training and two tests")
    # As if of one class: which image is a test image must not depend on what the net takes it for.
    places = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    rest, test = _divide(places, _TEST_FRACTION, seed=0)
    train, held_out = (_answered(part, answer) for part in _divide(rest, validation, seed=1))
    test = _answered(test, answer)
    augmentation = default_augmentation(folder.resolve().name, height)
    moments = (tuple(mean), tuple(std))
    fingerprint = _fingerprint(train, held_out, test)
    name = f"{folder}, as the teacher sees it"
    return DataSet(name, tuple(classes), train, held_out, test, *moments, augmentation, fingerprint, skipped)


def _answered(images: Images, answer: Callable[[Tensor], Tensor]) -> Images:
    return Images(images.images, torch.cat([answer(batch) for batch in images.images.split(500)]))


def _cache_folder() -> Path:
    if chosen := os.environ.get("POCKETCNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketcnn"


def _cached(name: str, reading: Reading, folder: Path) -> sources.Decoded:
    source = _find(name)
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


def _find(name: str) -> "sources.AbstractSource":
    folder = Path(name)
    if folder.is_dir():
        return sources.ParquetFolder(folder) if any(folder.rglob("*.parquet")) else sources.ClassFolders(folder)
    if folder.is_file():
        raise BadData(f"{name}: a file; a data set is a folder of parquet files or of class folders, or a hub id")
    if name in BUILT_IN:
        return sources.HubDataSet(BUILT_IN[name])
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UnknownData(name, BUILT_IN, "A folder or a hub id 'owner/name' is taken too; there is no such folder.")
    return sources.HubDataSet(name)


def _check_labels(name: str, train: Images, classes: tuple[str, ...], least: int) -> None:
    """Checks that there are classes, and images of each for every split that is taken from them."""
    if len(classes) < 2:
        raise BadData(f"{name}: only one class ({', '.join(classes)}); a classifier needs at least two")
    counts = torch.bincount(train.labels, minlength=len(classes))
    if empty := [classes[i] for i in (counts == 0).nonzero().flatten().tolist()]:
        raise BadData(f"{name}: no training images of class {empty[0]!r}; add some or remove the class")
    if int(counts.min()) < least:
        few = classes[int(counts.argmin())]
        raise BadData(
            f"{name}: class {few!r} has {int(counts.min())} images; a class needs at least {least}, one a split"
        )


def _divide(images: Images, fraction: float, *, seed: int) -> tuple[Images, Images]:
    """Divides images in two, class by class, so that small classes are in both parts."""
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(images), dtype=torch.bool)
    for label in images.labels.unique():
        members = (images.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        second[members[:count]] = True
    return tuple(Images(images.images[part], images.labels[part]) for part in (~second, second))  # type: ignore[return-value]


def _fingerprint(*splits: Images) -> str:
    """Of all pixels and labels, so that the same images elsewhere are the same data."""
    found = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            found.update(repr(tuple(tensor.shape)).encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def generator_of(*where: int) -> torch.Generator:
    """Random numbers of their own for each place: seed, epoch, step."""
    words = (len(where), *where)  # without the length, zeros at the end would tell nothing apart
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values scaled to [0, 1], exactly, by counting values."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        mean = float((share * values).sum())
        means.append(round(mean, 6))
        stds.append(round(max(1e-3, float((share * (values - mean) ** 2).sum()) ** 0.5), 6))
    return tuple(means), tuple(stds)
