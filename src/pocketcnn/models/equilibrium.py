"""A deep equilibrium net: one block of weights, applied until its features no longer change.

This is another way to use few weights many times, with which the ring's paper compares its own. The features z* solve
z = c W2 relu(x + W1 z) for the image's features x. Each convolution is divided by its operator norm, so the right side
shrinks distances by about c < 1: every image has one solution, and plain iteration finds it (Banach). The gradient goes
through one application of the block at z* (Jacobian-free backpropagation), so training stores the features of that one only.

Sources: Bai, Kolter, Koltun: Deep Equilibrium Models, NeurIPS 2019 (arXiv 1909.01377); Fung et al.: JFB: Jacobian-Free
Backpropagation for Implicit Networks, AAAI 2022 (arXiv 2103.12803); the norm by Sedghi, Gupta, Long: The Singular Values of
Convolutional Layers, ICLR 2019 (arXiv 1805.10408). Bai's block has normalisation inside, no such bound, and a quasi-Newton
solver. In a first try of ours, Anderson's acceleration found no equilibrium of a block with group norm within 60
applications for a quarter of the images.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.methods._call_value import tracing
from pocketcnn.methods._kept import Kept


def operator_norm(
    kernel: Float[Tensor, "out_channels in_channels kernel_height kernel_width"], grid: int = 8
) -> Tensor:
    """The largest factor by which a convolution of stride 1 can lengthen an image, as a scalar.

    A convolution acts on each spatial frequency by a matrix [out_channels, in_channels], the kernel's Fourier transform at
    that frequency. The largest singular value of all these matrices is the norm for images that wrap around; with zero
    padding the norm is no larger.

    Args:
        kernel: weight of the convolution.
        grid: how many frequencies are computed along each axis, at least the kernel's extent. The norm may lie between
            them: for a 3x3 kernel and a grid of 8 it is up to 1 / cos(pi / 8)^2 = 1.17 times as high, mostly a few per cent.
    """
    transfer = torch.fft.rfft2(kernel.float(), s=(grid, grid)).permute(2, 3, 0, 1)
    return torch.linalg.matrix_norm(transfer, ord=2).amax()


class EquilibriumNet(nn.Module):
    """A stem that halves the image, one block at its equilibrium, pooling and a linear classifier.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        width: scales the 40 channels.
        contraction: c, in (0, 1): the factor by which each application shrinks distances, about.
        tolerance: relative residual |f(z) - z| / |f(z)| that every image must fall below, in evaluation.
        max_steps: the most applications in evaluation.
        train_tolerance: `tolerance` in training, where a rough solution is enough.
        train_steps: `max_steps` in training.
    Raises:
        ValueError: an argument out of range.
    Shape: images [batch, in_channels, height, width] to logits [batch, num_classes].
    Cost: the block's, times the number of applications, which depends on the image. `measure` counts one image of random
        pixels, and its depth leaves the block out.
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
        # Parameters, not convolutions: the forward pass divides them by their norms, so no layer could replace them.
        self.inner, self.outer = (nn.Parameter(torch.empty(channels, channels, 3, 3)) for _ in range(2))
        for kernel in (self.inner, self.outer):
            nn.init.kaiming_uniform_(kernel, a=5**0.5)
        self._kept = Kept()
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def equilibrium(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> tuple[Float[Tensor, "batch channels out_height out_width"], Float[Tensor, " batch"], int]:
        """Solves for the equilibrium of each image.

        Where gradients are recorded, the block is applied once more to the solver's result.

        Returns:
            The features at the equilibrium, each image's relative residual, and the number of the solver's applications.
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
        # The solver ran without gradients, so one more application records them.
        return (block(value) if torch.is_grad_enabled() else z), residuals, steps

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """Scales the kernels to their norms. Without gradients the result is kept until a kernel's value changes."""
        if torch.is_grad_enabled() or tracing() or self.inner.is_meta:
            return self._scaled()
        return self._kept.get(None, (self.inner, self.outer), self._scaled)

    def _scaled(self) -> tuple[Tensor, Tensor]:
        return self.inner / operator_norm(self.inner), self.contraction * self.outer / operator_norm(self.outer)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_classes"]:
        z, _, _ = self.equilibrium(x)
        return self.fc(self.avgpool(torch.relu(self.bn2(z))).flatten(1))
