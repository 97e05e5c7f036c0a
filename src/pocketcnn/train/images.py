"""Images as a net is given them: normalised."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.data import DataSet


class Normalize(nn.Module):
    """uint8 images to floats of zero mean and unit deviation per channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)[:, None, None]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) * self.scale


def normalized(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], data: DataSet) -> Iterator[torch.Tensor]:
    """The images of batches, not augmented, as a net that is trained on the data is given them."""
    normalize = Normalize(data.mean, data.std)
    for images, _ in batches:
        yield normalize(images)


def calibrate(model: nn.Module, data: DataSet, *, images: int = 10_000) -> None:
    """Shows training images, as they will be given to the net, to those parts of it that learn from the images alone what
    to expect: what sets the depth of a net by the entropy of an image.

    Args:
        model: any net; one without such parts is left alone.
        data: whose training images are shown, not augmented, evenly from first to last.
        images: about how many.
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "calibrate_")]
    for part in parts:
        part.calibrate_(normalized(data.train.sample(images).in_order(500), data), mean=data.mean, std=data.std)
