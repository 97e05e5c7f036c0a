"""A deep equilibrium net: one block of weights, applied until its features no longer change.

The other way to use few weights many times, and the one that the ring's paper compares itself with. The features z* solve
z = c W2 relu(x + W1 z) for the image's features x. Each convolution is divided by its operator norm, so the right side
shrinks distances by about c < 1: there is one solution for every image, and plain iteration finds it (Banach). The gradient
goes through one application at z* (Jacobian-free backpropagation), so that training keeps the features of that one only.

Sources: Bai, Kolter, Koltun: Deep Equilibrium Models, NeurIPS 2019 (arXiv 1909.01377); Fung et al.: JFB: Jacobian-Free
Backpropagation for Implicit Networks, AAAI 2022 (arXiv 2103.12803); the norm by Sedghi, Gupta, Long: The Singular Values of
Convolutional Layers, ICLR 2019 (arXiv 1805.10408). Bai's has normalisation inside of the block, no such bound, and a
quasi-Newton solver; in a first try of ours, a block with group norm had no equilibrium for a quarter of the images that
Anderson's acceleration found in 60 applications.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def operator_norm(
    kernel: Float[Tensor, "out_channels in_channels kernel_height kernel_width"], grid: int = 8
) -> Tensor:
    """The largest factor by which a convolution of stride 1 can lengthen an image, as a scalar.

    A convolution acts on each spatial frequency by a matrix of its own, [out_channels, in_channels], the kernel's Fourier
    transform there; the largest singular value of all of them is the norm for images that wrap around, and zero padding
    cannot exceed it.

    Args:
        kernel: of the convolution.
        grid: how many frequencies are looked at along each axis, at least the kernel's extent. The largest value may lie
            in between: for a 3x3 kernel and a grid of 8 up to 1 / cos(pi / 8)^2 = 1.17 times as high, mostly a few per cent.
    """
    transfer = torch.fft.rfft2(kernel.float(), s=(grid, grid)).permute(2, 3, 0, 1)
    return torch.linalg.matrix_norm(transfer, ord=2).amax()


class EquilibriumNet(nn.Module):
    """A stem that halves the image, one block at its equilibrium, pooling and a linear classifier.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        width: scales the 40 channels.
        contraction: c, in (0, 1): by about how much each application shrinks distances.
        tolerance: relative residual |f(z) - z| / |f(z)| below which every image must come, in evaluation.
        max_steps: applications in evaluation, at most.
        train_tolerance: and in training, where a rough solution will do.
        train_steps: and in training.
    Raises:
        ValueError: a number out of range.
    Shape: images [batch, in_channels, height, width] to logits [batch, num_classes].
    Cost: that of the block as often as it is applied, which depends on the image. What `measure` counts is one image of
        random pixels, and its depth leaves the block out.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        contraction: float = 0.95,
        tolerance: float = 5e-4,
        max_steps: int = 60,
        train_tolerance: float = 1e-2,
        train_steps: int = 12,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, max_steps, train_steps) < 1 or min(tolerance, train_tolerance, width) <= 0:
            raise ValueError("classes, channels, steps, tolerances and width of an equilibrium net must be positive")
        if not 0 < contraction < 1:
            raise ValueError(f"contraction must lie in (0, 1), or there may be no equilibrium, not {contraction}")
        channels = max(1, round(40 * width))
        self.contraction = contraction
        self.tolerances, self.max_steps = (tolerance, train_tolerance), (max_steps, train_steps)
        self.stem = nn.Conv2d(in_channels, channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        # Plain kernels: no layer could take their place, as they are never used as they are.
        self.inner, self.outer = (nn.Parameter(torch.empty(channels, channels, 3, 3)) for _ in range(2))
        for kernel in (self.inner, self.outer):
            nn.init.kaiming_uniform_(kernel, a=5**0.5)
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def equilibrium(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[Float[Tensor, "batch channels out_height out_width"], Float[Tensor, " batch"], int]:
        """The features at the equilibrium, each image's relative residual there, and the solver's applications.

        Where gradients are recorded the block is applied once more to what the solver found.
        """
        x = self.bn1(self.stem(x))
        inner, outer = self._kernels()

        def block(z: Tensor) -> Tensor:
            return F.conv2d(torch.relu(x + F.conv2d(z, inner, padding=1)), outer, padding=1)

        tolerance, max_steps = self.tolerances[self.training], self.max_steps[self.training]
        with torch.no_grad():
            value, steps = x, 0
            while True:
                z, value, steps = value, block(value), steps + 1
                residuals = (value - z).flatten(1).float().norm(dim=1)
                residuals = residuals / value.flatten(1).float().norm(dim=1).clamp(min=1e-12)
                if steps >= max_steps or bool((residuals < tolerance).all()):
                    break
        # With a gradient, one application more.
        return (block(value) if torch.is_grad_enabled() else z), residuals, steps

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """The kernels at the norms they act with; kept while they do not change, where no gradient is recorded."""
        state = [(kernel.data_ptr(), kernel._version, kernel.dtype) for kernel in (self.inner, self.outer)]
        if not torch.is_grad_enabled() and self._kept is not None and self._kept[0] == state:
            return self._kept[1]
        inner = self.inner / operator_norm(self.inner)
        outer = self.contraction * self.outer / operator_norm(self.outer)
        self._kept = None if torch.is_grad_enabled() else (state, (inner, outer))
        return inner, outer

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_classes"]:
        z, _, _ = self.equilibrium(x)
        return self.fc(self.avgpool(torch.relu(self.bn2(z))).flatten(1))
