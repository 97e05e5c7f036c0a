"""Random changes to training images: shifts, mirror images and cut-outs of a batch, random crops, and smaller sizes."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Random changes made to training images."""

    crop: int = 0
    """Largest shift on each axis, in pixels."""
    border: Literal["black", "reflect"] = "black"
    """Pixels that enter: black, or those inside, reflected at the edge."""
    flip: bool = False
    """Mirrors images left to right, each with probability 1/2."""
    cutout: int = 0
    """Side in pixels of a black square at a random place; 0 for none."""

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise ValueError(f"crop and cutout are numbers of pixels, 0 or more, got {self.crop}, {self.cutout}")


_KNOWN = {
    "digits": Augmentation(crop=1),
    "fashion-mnist": Augmentation(crop=2, flip=True),
}
_WRITING = ("mnist", "svhn", "digit", "letter", "omniglot")  # never mirrored


def default_augmentation(family: str, size: int) -> Augmentation:
    """Chooses an augmentation by the data set's name: images of writing are shifted but never mirrored.

    All other images are treated as photos: shifted by up to an eighth of their side, and mirrored.
    """
    family = family.lower().replace("_", "-")
    if any(word in family for word in _WRITING):
        return _KNOWN.get(family, Augmentation(crop=max(1, size // 12)))
    return Augmentation(crop=max(1, size // 8), flip=True)


def augment(
    images: Tensor,
    how: Augmentation,
    generator: torch.Generator,
    *,
    part: int = 0,
    parts: int = 1,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Augments a batch, or one of the equal parts into which several devices divide a batch.

    Args:
        images: [batch, channels, height, width], any dtype, on any device.
        how: the changes to make.
        generator: a generator on the CPU, so that a seed means the same on every device.
        part: index of this part of the batch, from 0.
        parts: number of parts; random numbers are drawn for the whole batch, so that dividing it changes nothing.
        mirrored: [batch] truth values: which images to mirror, instead of some at random.
    Returns:
        A new batch of the same shape, or `images` itself if there is nothing to do.
    Cost: one gather for the crop, one for the flip.
    """
    batch, _, height, width = images.shape
    device = images.device
    whole, own = parts * batch, slice(part * batch, (part + 1) * batch)
    if how.crop or how.flip or mirrored is not None:
        shift = torch.randint(0, 2 * how.crop + 1, (2, whole, 1), generator=generator)[:, own]
        if mirrored is None:
            mirrored = torch.zeros(batch, dtype=torch.bool)
            if how.flip:
                mirrored = torch.rand(whole, 1, generator=generator)[own, 0] < 0.5
        rows = shift[0] + torch.arange(height)
        columns = torch.where(mirrored[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + shift[1]
        if how.border == "reflect":
            rows, columns = _reflected(rows - how.crop, height), _reflected(columns - how.crop, width)
        else:
            images = F.pad(images, (how.crop,) * 4)
        image = torch.arange(batch, device=device)[:, None, None]
        # Advanced indices around a slice move to the front: [batch, height, width, channels], that is channels-last.
        images = images[image, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]].permute(0, 3, 1, 2)
    if how.cutout:
        centre = torch.rand(2, whole, 1, generator=generator)[:, own] * torch.tensor([height, width])[:, None, None]
        inside = [
            (torch.arange(length) + 0.5 - c).abs() < how.cutout / 2
            for length, c in zip((height, width), centre, strict=True)
        ]
        hole = (inside[0][:, :, None] & inside[1][:, None, :]).to(device)
        images = images.masked_fill(hole[:, None], 0)
    return images


def _reflected(places: Tensor, length: int) -> Tensor:
    """Reflects places at the edges of an axis, without repeating the edge, as often as it takes."""
    period = max(1, 2 * (length - 1))
    return (length - 1) - ((places % period) - (length - 1)).abs()


def shrink(images: Tensor, share: float) -> Tensor:
    """Makes images smaller; each new pixel is the mean of the pixels that it covers.

    Args:
        images: [batch, channels, height, width], any dtype.
        share: new side over old side, in (0, 1].
    Returns:
        float32 images with the same range of values.
    """
    size = [max(1, round(share * side)) for side in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


def random_crop(pixels: np.ndarray, size: int, min_area: float, random: np.random.Generator) -> np.ndarray:
    """Cuts a random part out of an image and resizes it to a square.

    Args:
        pixels: [channels, height, width], uint8.
        size: side of the result, in pixels.
        min_area: smallest part, as a share of the image's area. The share is uniform from `min_area` to 1, and width
            over height is log-uniform from 3/4 to 4/3. If none of ten draws fits, the last is cut to the image.
        random: random number generator.
    Returns:
        [channels, size, size], uint8.
    Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6.
    """
    _, height, width = pixels.shape
    for _ in range(10):
        area = random.uniform(min_area, 1) * height * width
        ratio = math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        rows, columns = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
        if rows <= height and columns <= width:
            break
    rows, columns = min(rows, height), min(columns, width)
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    part = torch.from_numpy(pixels[:, top : top + rows, left : left + columns].copy())
    return F.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0].numpy()
