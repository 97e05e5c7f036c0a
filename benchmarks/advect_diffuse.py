"""Measures how far the solver lets random fields grow: leap-frog has a growing mode where a velocity's divergence is not 0.

    python benchmarks/advect_diffuse.py

This script times nothing; `pocketcnn bench` does.
"""

from statistics import median

import torch

from pocketcnn import kernels


def growth(seeds=20):
    """Prints the largest |H| after some steps over the largest at the start, with f = 0."""
    print(f"growth of random fields, 1x1x32x32, dt = 0.2, largest |H| over its start, median over {seeds} seeds\n")
    print(f"{'u dt/dx and v dt/dy':<30}{'D':>4}{'5 steps':>10}{'20 steps':>10}{'100 steps':>12}")
    for name, sample, blurs in (
        ("random in [0, 0.1]", lambda r: 0.5 * r, 0),
        ("random in [0, 0.49]", lambda r: 2.45 * r, 0),
        ("random in [-0.49, 0.49]", lambda r: 2.45 * (2 * r - 1), 0),
        ("the same, blurred 10 times", lambda r: 2.45 * (2 * r - 1), 10),
    ):
        for diffusivity in (0.0, 1.0):
            cells = []
            for num_steps in (5, 20, 100):
                ratios = []
                for seed in range(seeds):
                    torch.manual_seed(seed)
                    h = torch.randn(1, 1, 32, 32, dtype=torch.float64)
                    u, v = (sample(torch.rand(1, 1, 32, 32, dtype=torch.float64)) for _ in range(2))
                    for _ in range(blurs):
                        u, v = ((t + t.roll(1, 2) + t.roll(1, 3) + t.roll((1, 1), (2, 3))) / 4 for t in (u, v))
                    y = kernels.advect_diffuse(
                        torch.zeros_like(h), u, v, diffusivity, diffusivity, initial=h, previous=h, num_steps=num_steps
                    )
                    ratios.append(float(y.abs().max() / h.abs().max()))
                cells.append(median(ratios))
            print(f"{name:<30}{diffusivity:>4.0f}{cells[0]:>10.3g}{cells[1]:>10.3g}{cells[2]:>12.3g}")


if __name__ == "__main__":
    growth()
