"""What the compiled solver earns, what a Global layer holds in memory, and how far random fields grow.

    python benchmarks/advect_diffuse.py

Both sides of a comparison run in turns; times are medians. Nothing here is a test.
"""

import time
from statistics import median

import torch

from pocketcnn import kernels, numerics
from pocketcnn.cost import measure_memory
from pocketcnn.methods.pde import GlobalLayer

SHAPES = ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8))


def fields(*shape):
    """Source, u, v, Dx, Dy."""
    return [torch.randn(shape), *(torch.rand(shape) for _ in range(4))]


def seconds(solve, inputs, backward):
    inputs = [t.detach().requires_grad_(backward) for t in inputs]
    start = time.perf_counter()
    y = solve(*inputs)
    if backward:
        y.sum().backward()
    return time.perf_counter() - start


def speed(rounds=7):
    print(f"{torch.get_num_threads()} threads, 5 steps, float32\n")
    print(f"{'shape':<18}{'pass':<20}{'definition ms':>14}{'compiled ms':>13}{'ratio':>7}")
    for shape in SHAPES:
        inputs = fields(*shape)
        for backward in (False, True):
            taken = {solve: [] for solve in (numerics.advect_diffuse, kernels.advect_diffuse)}
            for _ in range(rounds + 1):
                for solve, times in taken.items():
                    times.append(seconds(solve, inputs, backward))
            slow, fast = (1e3 * median(times[1:]) for times in taken.values())
            name = "forward + backward" if backward else "forward"
            print(f"{'x'.join(map(str, shape)):<18}{name:<20}{slow:>14.1f}{fast:>13.1f}{slow / fast:>7.1f}")


class Definition(torch.nn.Module):
    """A Global layer whose solver is the definition, for comparison."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        coefficients = (*self.layer.velocities(x), *self.layer.diffusivities(x))
        return self.layer.bn(numerics.advect_diffuse(x, *coefficients, num_steps=self.layer.options.num_steps)).relu()


def memory(batch=64):
    channels, side = 16, 32
    one_map = 4 * batch * channels * side * side
    print(f"\npeak of forward + backward of a layer, in maps of {batch}x{channels}x{side}x{side} float32\n")
    print(f"{'steps':>6}{'definition':>12}{'compiled':>10}")
    for num_steps in (1, 5, 20):
        layer = GlobalLayer(channels, num_steps=num_steps)
        peaks = [
            measure_memory(net, (channels, side, side), batch=batch, training=True) / one_map
            for net in (Definition(layer), layer)
        ]
        print(f"{num_steps:>6}{peaks[0]:>12.2f}{peaks[1]:>10.2f}")


def growth(seeds=20):
    """Leap-frog's growing mode: the largest |H| after some steps over the largest at the start, f = 0."""
    print(f"\ngrowth of random fields, 1x1x32x32, dt = 0.2, largest |H| over its start, median over {seeds} seeds\n")
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
    speed()
    memory()
    growth()
