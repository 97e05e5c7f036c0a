"""A data set in memory: images, labels, splits, and the mean and deviation that normalise the images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.data.augment import Augmentation
from pocketcnn.data.found import NOTHING, Found

BUILT_IN = {
    "digits": "scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no download",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
BUILT_IN_SIZES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
}
"""(channels, height, width) of the built-in data sets as they are."""


@dataclass(frozen=True, repr=False)
class Images:
    """Images [n, channels, height, width] as uint8, and their labels [n] as int64."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        return f"Images({len(self):,} of {'x'.join(map(str, self.image_shape))})"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: Any) -> tuple[Tensor, Tensor]:
        """Images and labels by an index, a slice or a tensor of indices."""
        return self.images[which], self.labels[which]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def steps(self, batch_size: int, world: int = 1) -> int:
        """Training steps of an epoch on `world` devices; images that do not fill a batch on all are left out."""
        return max(1, len(self) // (batch_size * world))

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One device's batches of a training epoch, from step `start` on.

        Together the devices see the batches that one device would see with `world` times the batch size.

        Args:
            batch_size: images per step and device; fewer if a device's share of the split is smaller.
            seed: seed of the order.
            epoch: number of the epoch; each has an order of its own.
            start: number of steps to leave out.
            rank: index of this device.
            world: number of devices.
        """
        order = self.order(seed, epoch)
        batch = min(batch_size, len(self) // world)
        for step in range(start, self.steps(batch_size, world)):
            first = (step * world + rank) * batch
            chosen = order[first : first + batch]
            yield self[chosen]

    def order(self, seed: int, epoch: int) -> Tensor:
        """Order of the images in a training epoch: their numbers, [n]."""
        return torch.randperm(len(self), generator=generator_of(seed, epoch))

    def in_order(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """One device's batches of all images in order; each image goes to one of `world` devices."""
        own = torch.arange(rank, len(self), world)
        for chosen in own.split(batch_size):
            yield self[chosen]

    def sample(self, count: int) -> "Images":
        """About `count` images, evenly spaced from first to last."""
        every = max(1, len(self) // count)
        return Images(*self[::every])


@dataclass(frozen=True, repr=False)
class DataSet:
    """A data set ready for training: three splits, class names, and the mean and deviation that normalise the images.

    A split is `Images` in memory, or a `Stream` that is decoded while it is read. `mean` and `std` are per channel, of
    training images scaled to [0, 1]. `augmentation` suits the images. Make choices on `validation`; use `test` only at
    the very end of a training. `skipped` counts images that could not be decoded. `fingerprint` changes when the
    images, the labels or the splits change. `found` says what was read as what, and what was left out.
    `reading` holds the arguments of `load` without which the same files may be read in another way: `image_column`,
    `label_column` and `bits`, as far as they matter.
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
    found: Found = NOTHING
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = [f"{len(split):,}" for split in (self.train, self.validation, self.test)]
        return (
            f"DataSet({self.name}: {counts[0]} training, {counts[1]} validation and {counts[2]} test images of "
            f"{'x'.join(map(str, self.input_size))}, {len(self.classes)} classes)"
        )

    def __deepcopy__(self, memo: Any) -> "DataSet":
        return self  # immutable and large

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape

    def with_all_images(self) -> "DataSet":
        """The same data set whose validation images are training images too.

        Raises:
            ValueError: a split is decoded while it is read.
        """
        parts = (self.train, self.validation)
        if not all(isinstance(part, Images) for part in parts):
            raise ValueError(
                f"{self.name}: all_images takes images in memory, and these are decoded while they are read"
            )
        both = Images(*(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels")))
        return replace(self, train=both)


def reading_of(image_column: str | None, label_column: str | None, bits: int | None) -> dict[str, Any]:
    """The `reading` of a data set: those of the arguments that are given."""
    given = {"image_column": image_column, "label_column": label_column, "bits": bits}
    return {name: value for name, value in given.items() if value is not None}


def generator_of(*where: int) -> torch.Generator:
    """Makes a random generator for a place such as (seed, epoch, step); each place has its own random numbers."""
    words = (len(where), *where)  # without the length, zeros at the end would make no difference
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))
