"""Times the reading of a ring by scheme: all kernels of a resnet18, forward and backward.

    .venv/bin/python benchmarks/ring.py

Each scheme reads its tables of places and signs from memory. The affine scheme is also timed with its places computed anew in
each pass, as in an exported net without tables. All run in turns; times are medians in milliseconds, float32 on the CPU.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

import pocketcnn as pc
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.numerics import ring_kernel
from pocketcnn.numerics.ring_index import SCHEMES, affine_constants, affine_indices

SIZES = (0.01, 0.1, 0.5)
ROUNDS = 9


def read(ring: ParameterRing) -> list[torch.Tensor]:
    """Reads every layer's kernel, with places and signs from the tables."""
    return [ring.read(slot) for slot in range(len(ring.shapes))]


def compute(ring: ParameterRing) -> list[torch.Tensor]:
    """Reads every layer's kernel, with places and signs computed by arithmetic."""
    constants, kernels, start = affine_constants(len(ring.values), ring.seed), [], 0
    for size, scale in zip(ring.sizes, ring.scales, strict=True):
        places, signs = affine_indices(torch.arange(start, start + size), constants)
        kernels.append(ring_kernel(ring.values, places, signs, scale))
        start += size
    return kernels


def medians(sides: dict[str, Callable[[], list[torch.Tensor]]]) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each side forward, and forward and backward; the sides run in turns after a warm-up round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            kernels = run()
            middle = time.perf_counter()
            torch.autograd.backward(kernels, kernels)
            times[name].append((1e3 * (middle - start), 1e3 * (time.perf_counter() - start)))
    return {name: (median(t[0] for t in taken[1:]), median(t[1] for t in taken[1:])) for name, taken in times.items()}


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds forward / forward + backward")
    net = pc.create_model("resnet18", stem="small", num_classes=10)
    print(f"{'size':>6}" + "".join(f"{name:>20}" for name in (*SCHEMES, "affine, computed")))
    for size in SIZES:
        sides = {}
        for scheme in SCHEMES:
            made = pc.condense(net, "ring", size=size, scheme=scheme)
            ring = next(module for module in made.modules() if isinstance(module, ParameterRing))
            sides[scheme] = partial(read, ring)
            if scheme == "affine":
                computed = partial(compute, ring)
        found = medians({**sides, "affine, computed": computed})
        print(f"{size:>6}" + "".join(f"{forward:>11.1f} /{both:>7.1f}" for forward, both in found.values()))


if __name__ == "__main__":
    main()
