"""What a data set is in memory: images, labels, splits, and what normalises them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.data.augment import Augmentation

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


def generator_of(*where: int) -> torch.Generator:
    """Random numbers of their own for each place: seed, epoch, step."""
    words = (len(where), *where)  # without the length, zeros at the end would tell nothing apart
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))
