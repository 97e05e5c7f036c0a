"""What the twins in `kernels/torch_ops.py` earn over the definitions, next to a plain convolution of the same shape.

    .venv/bin/python benchmarks/dynamic_conv.py

Forward and backward, all sides in turns, medians in milliseconds; float32 on the CPU with the threads torch takes.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from pocketcnn import kernels, numerics

SHAPES = ((32, 64, 32), (32, 128, 16), (32, 256, 8), (128, 64, 4))  # batch, channels, side
ROUNDS = 7


def medians(sides: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Median milliseconds of each side's forward and backward pass, timed in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run().sum().backward()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{'':<26}{'convolution':>13}{'definition':>13}{'twin':>13}{'twin / definition':>20}{'twin / convolution':>20}"
    )
    for batch, channels, side in SHAPES:
        x = torch.randn(batch, channels, side, side, requires_grad=True)
        for kernel_size in (3, 7):
            taps, padding = kernel_size**2, kernel_size // 2
            weight = torch.randn(channels, channels, kernel_size, kernel_size, requires_grad=True)
            per_pixel = torch.randn(batch, channels // 16, taps, side, side, requires_grad=True)
            options: dict[str, int] = {"kernel_size": kernel_size, "padding": padding}
            sides = {
                "convolution": partial(F.conv2d, x, weight, padding=padding),
                "definition": partial(numerics.involution2d, x, per_pixel, **options),
                "twin": partial(kernels.involution2d, x, per_pixel, **options),
            }
            show(f"involution K{kernel_size} {batch}x{channels}x{side}x{side}", medians(sides))
        weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
        experts = torch.randn(4, channels, channels, 3, 3, requires_grad=True)
        routing = torch.rand(batch, 4, requires_grad=True)
        sides = {
            "convolution": partial(F.conv2d, x, weight, padding=1),
            "definition": partial(numerics.condconv2d, x, routing, experts, padding=1, computation="unfold"),
            "twin": partial(kernels.condconv2d, x, routing, experts, padding=1),
        }
        show(f"condconv {batch}x{channels}x{side}x{side}", medians(sides))


def show(name: str, taken: dict[str, float]) -> None:
    conv, definition, twin = taken.values()
    print(f"{name:<26}{conv:>13.1f}{definition:>13.1f}{twin:>13.1f}{twin / definition:>19.2f}x{twin / conv:>19.2f}x")


if __name__ == "__main__":
    main()
