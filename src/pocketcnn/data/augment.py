"""Random shifts, mirror images and cut-outs, drawn for a whole batch at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images."""

    crop: int = 0
    """Images are shifted by up to this many pixels on each axis; what enters is black."""
    flip: bool = False
    """Whether images are mirrored left to right, each with probability 1/2."""
    cutout: int = 0
    """Side in pixels of a black square put at a random place; 0 for none."""

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise ValueError(f"crop and cutout are numbers of pixels, 0 or more, got {self.crop}, {self.cutout}")


_KNOWN = {
    "digits": Augmentation(crop=1),
    "fashion-mnist": Augmentation(crop=2, flip=True),
}
_WRITING = ("mnist", "svhn", "digit", "letter", "omniglot")  # never mirrored


def default_augmentation(family: str, size: int) -> Augmentation:
    """What suits a data set, by its name: writing is shifted but never mirrored; all else is taken for photos.

    Photos are shifted by an eighth of their side and mirrored.
    """
    family = family.lower().replace("_", "-")
    if any(word in family for word in _WRITING):
        return _KNOWN.get(family, Augmentation(crop=max(1, size // 12)))
    return Augmentation(crop=max(1, size // 8), flip=True)


def augment(images: Tensor, how: Augmentation, generator: torch.Generator, *, part: int = 0, parts: int = 1) -> Tensor:
    """Augments a batch, or one of the equal parts that several devices share it out in.

    Args:
        images: [batch, channels, height, width], any dtype, on any device.
        how: what is done.
        generator: on the CPU, so that a seed means the same on every device.
        part: which part of the batch these images are, from 0.
        parts: how many; the draws are those of the whole batch, so that sharing it out changes nothing.
    Returns:
        A new batch of the same shape; the same one where there is nothing to do.
    Cost: one gather for the crop, one for the flip.
    """
    batch, _, height, width = images.shape
    device = images.device
    whole, own = parts * batch, slice(part * batch, (part + 1) * batch)
    if how.crop or how.flip:
        shift = torch.randint(0, 2 * how.crop + 1, (2, whole, 1), generator=generator)[:, own]
        mirrored = torch.zeros(batch, 1, dtype=torch.bool)
        if how.flip:
            mirrored = torch.rand(whole, 1, generator=generator)[own] < 0.5
        rows = shift[0] + torch.arange(height)
        columns = torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width)) + shift[1]
        padded = F.pad(images, (how.crop,) * 4)
        image = torch.arange(batch, device=device)[:, None, None]
        # Advanced indices around a slice move to the front: [batch, height, width, channels], which is channels-last.
        images = padded[image, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]].permute(0, 3, 1, 2)
    if how.cutout:
        centre = torch.rand(2, whole, 1, generator=generator)[:, own] * torch.tensor([height, width])[:, None, None]
        inside = [
            (torch.arange(length) + 0.5 - c).abs() < how.cutout / 2
            for length, c in zip((height, width), centre, strict=True)
        ]
        hole = (inside[0][:, :, None] & inside[1][:, None, :]).to(device)
        images = images.masked_fill(hole[:, None], 0)
    return images


def shrink(images: Tensor, share: float) -> Tensor:
    """Images of a smaller side, each pixel the mean of what it covers.

    Args:
        images: [batch, channels, height, width], any dtype.
        share: of the sides that is left, in (0, 1].
    Returns:
        float32, of the same values.
    """
    size = [max(1, round(share * side)) for side in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)
