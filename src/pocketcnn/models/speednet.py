"""The net of the CIFAR-10 speed runs: wide, shallow, and made to be trained in a few epochs.

A stem of 2x2 kernels that whiten the patches of training images is followed by three groups of two 3x3 convolutions, of 64,
256 and 256 channels. Each group pools between its convolutions. Norms have no scale, GELU is the activation, and each
convolution starts as the identity on as many channels as it can.

Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, arXiv 2404.00498. `blocks` is ours.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_log = logging.getLogger(__name__)
_SIDE = 9
"""Smallest side of an image: 8 pixels after the stem, which three pools halve to one."""
_LEAST = 5e-4
"""Added to the variance of each direction, so that directions without any stay finite."""


class WhiteningStem(nn.Module):
    """A frozen 2x2 convolution whose outputs, over all patches of the training images, are uncorrelated and of one size.

    It has a filter for each eigenvector of the patches' covariance, and one for its opposite, so that the activation behind
    it loses nothing. `train.fit` shows it training images. A net trained in another way takes the first batch that it sees
    in training mode, and says so in the log. Until then its filters are random.

    It computes in the type of its weights, also under autocast: the finest filters subtract pixels that are almost equal,
    and bfloat16 would put 6 % of noise on their outputs.

    Args:
        in_channels: channels of the image; 8 times as many go out.
    Shape: [batch, in_channels, height, width] to [batch, 8 * in_channels, height - 1, width - 1].
    """

    whitened: Tensor

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8 * in_channels, 2)
        self.conv.weight.requires_grad_(False)
        nn.init.zeros_(self.conv.get_parameter("bias"))
        self.register_buffer("whitened", torch.zeros((), dtype=torch.float32))  # a float, so that averages take it

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels up left"]:
        if self.training and not torch.compiler.is_compiling() and type(x) is Tensor and not self._knows_images():
            _log.warning("the stem is whitened by the first batch; calibrate_(loader) shows it more images")
            self._whiten([x])
        device = x.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return self.conv(x)
        with torch.autocast(device, enabled=False):
            return self.conv(x.to(self.conv.weight.dtype)).to(torch.get_autocast_dtype(device))

    @torch.no_grad()
    def calibrate_(
        self,
        loader: Iterable[Any],
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> "WhiteningStem":
        """Whitens the filters, unless they have been: a trained net depends on them.

        Args:
            loader: batches of images as the net is given them, alone or first in a tuple.
            mean: not used: images are taken as they come.
            std: not used.
            value_range: not used.
        Raises:
            ValueError: no images, or too few to tell their directions apart; the filters stay as they were.
        """
        if not self._knows_images():
            self._whiten(batch if isinstance(batch, Tensor) else batch[0] for batch in loader)
        return self

    def _knows_images(self) -> bool:
        return self.whitened.is_meta or bool(self.whitened)

    @torch.no_grad()
    def _whiten(self, batches: Iterable[Tensor]) -> None:
        weight = self.conv.weight
        size = weight[0].numel()
        total, count = torch.zeros(size, size, dtype=torch.float64), 0
        for batch in batches:
            if len(batch):
                patches = F.unfold(batch.detach().float(), 2).transpose(1, 2).reshape(-1, size).double().cpu()
                total += patches.T @ patches
                count += len(patches)
        if count < size or not torch.isfinite(total).all():
            raise ValueError(
                f"{count} finite patches of 2 x 2 pixels cannot whiten a stem of {size} numbers; show it more images"
            )
        variances, directions = torch.linalg.eigh(total / count)
        filters = (directions / (variances + _LEAST).sqrt()).T.flip(0).reshape(size, *weight.shape[1:])
        weight.copy_(torch.cat([filters, -filters]))
        self.whitened.fill_(1)


class PooledGroup(nn.Module):
    """Two 3x3 convolutions, each with norm and GELU; the first one's maps are halved by a max-pool."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.pool, self.bn1 = _conv(in_channels, channels), nn.MaxPool2d(2), _norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels), _norm(channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.pool(self.conv1(x))))
        return self.act(self.bn2(self.conv2(y)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with norm and GELU beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, channels), _norm(channels)
        self.conv2, self.bn2 = _conv(channels, channels), _norm(channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + x)


class SpeedNet(nn.Module):
    """A whitening stem, three pooled groups, a max-pool over the whole map and a linear classifier without bias.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        width: factor for the channels of the groups; each product is rounded, and at least 1.
        blocks: residual blocks of equal shape after each group; methods that share the blocks of a stage need some.
    Raises:
        ValueError: an option is out of range, or images with a side of less than 9 pixels.
    Shape: images [batch, in_channels, height, width] of at least 9 x 9 pixels to logits [batch, num_classes].
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, blocks: int = 0) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1 or blocks < 0:
            raise ValueError(
                "num_classes and in_channels must be at least 1 and blocks at least 0, "
                f"got {num_classes}, {in_channels}, {blocks}"
            )
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"width must be a positive number, not {width}")
        self.stem, self.act = WhiteningStem(in_channels), nn.GELU()
        here = 8 * in_channels
        for stage, channels in enumerate((64, 256, 256), start=1):
            out = max(1, round(channels * width))
            group = [PooledGroup(here, out), *(ResidualBlock(out) for _ in range(blocks))]
            self.add_module(f"layer{stage}", nn.Sequential(*group))
            here = out
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(here, num_classes, bias=False)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_classes"]:
        if type(x) is Tensor and min(x.shape[2:]) < _SIDE:
            raise ValueError(
                f"speednet takes images of at least {_SIDE} x {_SIDE} pixels, not {' x '.join(map(str, x.shape[2:]))}"
            )
        x = self.act(self.stem(x))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.pool(x).flatten(1)) / 9


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm that does not scale, with a short memory: the net changes quickly."""
    norm = nn.BatchNorm2d(channels, momentum=0.4, eps=1e-12)
    norm.weight.requires_grad_(False)
    return norm


BUILDERS: dict[str, Callable[..., nn.Module]] = {"speednet": SpeedNet}
