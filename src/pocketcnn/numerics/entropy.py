"""Measures of an image's complexity: the entropy that Puppet-CNN uses, and others.

Source: Puppet-CNN's H(X) = 1/2 E(X) + 1/2 E(Y(X)), with E the Shannon entropy of a histogram and Y a frequency
transform. The publication leaves bins and transform open. Here both histograms have bins of one width: an orthonormal
Fourier transform keeps the image's energy, so the magnitude of a frequency is measured in units of pixel values.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.numerics._shapes import is_recorded, is_transformed

TERMS = ("both", "pixel", "frequency")
Images = Float[Tensor, "batch channels height width"]
Values = Float[Tensor, "batch"]


def image_entropy(
    x: Images,
    *,
    bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
    term: str = "both",
) -> Values:
    """The Shannon entropy of each image, in bits: H = 1/2 E(pixels) + 1/2 E(frequencies).

    E(pixels) is the entropy of the histogram of all pixel values, of all channels together. E(frequencies) is that of
    the magnitudes of the two-dimensional Fourier transform of each channel, orthonormal, without the mean. Both lie
    between 0, for one value everywhere, and log2(bins). Values outside the range count as its ends.

    Args:
        x: images [batch, channels, height, width].
        bins: number of equal parts of the range.
        value_range: the lowest and the highest value of a pixel; magnitudes are counted from 0 to the range's width.
        term: `"both"`, or only `"pixel"` or `"frequency"`.
    Returns:
        One number an image, [batch], in float32 or, for float64 images, in float64, without a gradient.
    Raises:
        ValueError: an argument out of range, images of a single pixel, or pixels that are not a number.
    """
    if term not in TERMS:
        raise ValueError(f"no term {term!r}; known: {', '.join(TERMS)}")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    x = _checked(x, value_range)
    if x.shape[0] == 0:
        return x.new_zeros(0)  # some FFT backends reject empty batches
    low, high = value_range
    width = (high - low) / bins
    terms = []
    if term != "frequency":
        terms.append(_entropy((x - low) / width, bins))
    if term != "pixel":
        magnitudes = torch.fft.fft2(x, norm="ortho").abs().flatten(2)[:, :, 1:]
        # Magnitudes are rounded to multiples of the bins' width: one of less than half a bin counts as 0.
        terms.append(_entropy(magnitudes / width + 1 / 2, bins))
    return torch.stack(terms).mean(0)


def image_variance(x: Images, *, value_range: tuple[float, float] = (0.0, 1.0)) -> Values:
    """The variance of each image's values, as a share of the largest possible: between 0 and 1.

    Args:
        x: images [batch, channels, height, width].
        value_range: the lowest and the highest value a pixel can have.
    Raises:
        ValueError: as in `image_entropy`.
    """
    x = _checked(x, value_range).flatten(1)
    return (x - x.mean(1, keepdim=True)).square().mean(1) * 4 / (value_range[1] - value_range[0]) ** 2


def edge_density(x: Images, *, value_range: tuple[float, float] = (0.0, 1.0), threshold: float = 0.1) -> Values:
    """The share of each image's pixels where brightness changes by more than a threshold: between 0 and 1.

    The change is the length of Sobel's gradient of the channels' mean, per pixel of distance, with the pixels at the
    border repeated.

    Args:
        x: images [batch, channels, height, width].
        value_range: the lowest and the highest value a pixel can have.
        threshold: as a share of that range.
    Raises:
        ValueError: as in `image_entropy`.
    """
    x = _checked(x, value_range).mean(1, keepdim=True)
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=x.dtype, device=x.device) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    length = F.conv2d(padded, kernels).square().sum(1).sqrt()
    return (length > threshold * (value_range[1] - value_range[0])).to(x.dtype).mean((1, 2))


_PRIME, _FACTOR = 2039, 7919


def image_lot(x: Images, *, value_range: tuple[float, float] = (0.0, 1.0)) -> Values:
    """A number between 0 and 1 that an image always draws and that says nothing of it: a control for real measures.

    It is a hash: pixels as whole numbers of 8 bits, each times a number that its position sets, summed modulo a prime.

    Args:
        x: images [batch, channels, height, width].
        value_range: the lowest and the highest value a pixel can have; values outside count as its ends.
    Raises:
        ValueError: as in `image_entropy`.
    """
    x, (low, high) = _checked(x, value_range).flatten(1), value_range
    pixels = ((x - low) * (255 / (high - low))).round().clamp(0, 255).long()
    factors = torch.arange(1, x.shape[1] + 1, device=x.device) * _FACTOR % _PRIME
    return ((pixels + 1) * factors).sum(1).remainder(_PRIME).to(x.dtype) / _PRIME


def _checked(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Checks images for a measure, and converts them to at least float32."""
    if not value_range[0] < value_range[1]:
        raise ValueError(f"value_range is (lowest, highest), not {value_range}")
    if x.shape[2] * x.shape[3] < 2:
        raise ValueError(f"an image of one pixel has no structure to measure, got {list(x.shape)}")
    unread = torch.compiler.is_compiling() or is_recorded() or is_transformed() or x.is_meta
    if not unread and not x.isfinite().all():
        which = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"pixels that are infinite or not a number in images {which[:5]} of the batch")
    return x if x.dtype == torch.float64 else x.float()


def _entropy(places: Tensor, bins: int) -> Tensor:
    """Computes the entropy in bits of each image's histogram, given the position of each value in units of bins."""
    places = places.flatten(1).clamp(0, bins - 1)
    counts = places.new_zeros(places.shape[0], bins).scatter_add(1, places.long(), torch.ones_like(places))
    return torch.special.entr(counts / places.shape[1]).sum(1) / math.log(2)
