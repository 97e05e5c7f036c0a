"""Images normalised as a net receives them in training."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pocketcnn.data import DataSet
from pocketcnn.support.protocols import LearnsFromImages


class Normalize(nn.Module):
    """Turns images with values from 0 to 255 into floats of zero mean and unit deviation per channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)[:, None, None]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) * self.scale


def normalized(batches: Iterable[tuple[Tensor, Tensor]], data: DataSet) -> Iterator[Tensor]:
    """Yields the images of batches, normalised but not augmented."""
    normalize = Normalize(data.mean, data.std)
    for images, _ in batches:
        yield normalize(images)


def calibrate(model: nn.Module, data: DataSet, *, images: int = 10_000) -> None:
    """Shows training images to those modules of a net that learn from images before training starts.

    Such a module sets the depth of a net by an image's entropy, and must know which entropies to expect.

    Args:
        model: any net; a net without such modules stays as it is.
        data: the data set. Its training images are shown evenly from first to last, normalised but not augmented.
        images: about how many images are shown.
    """
    parts = [module for module in model.modules() if isinstance(module, LearnsFromImages)]
    for part in parts:
        part.calibrate_(normalized(data.train.sample(images).in_order(500), data), mean=data.mean, std=data.std)
