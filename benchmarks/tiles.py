"""Times the parts of a tile of the solver: bringing planes in and out, forming coefficients, steps, and the backward pass.

    python benchmarks/tiles.py

One thread, channels last, 64 images, without steps and with five. Times are nanoseconds for 16 values, one of each plane of a
tile, and the best of some runs.
"""

import time

import numpy as np
import torch

from pocketcnn.kernels import cpu_solver as cpu
from pocketcnn.kernels._lanes import LANES, flat_of
from pocketcnn.kernels._threads import share
from pocketcnn.kernels.cpu_solver_loops import backward_parts, backward_tiles, forward_parts, forward_tiles

SHAPES = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8))


def best(call, rounds=9):
    """Seconds of the fastest of some calls; the first call, which may compile, does not count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def passes(shape, formed, num_steps):
    """Seconds of the forward and the backward pass; coefficients are formed from the image, or read."""
    x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
    fields = [torch.zeros(1, 1, 1, 1) if formed else torch.rand_like(x) for _ in range(4)]
    table = torch.randn(4, 11, shape[1]) / 10 if formed else None
    given = cpu._Given(x, tuple(fields), None, None, table, [0, 1, 2, 3] if formed else [-1] * 4, True)
    grid = cpu._grid(x, num_steps, 0.2, 1.0, 1.0, "periodic")
    line, out = np.empty((0, 2, shape[1]), np.float32), flat_of(given.like_source())
    grads = [given.like_source(place in range(1, 5)) for place in range(1 if formed else 5)]
    grads += [given.nothing() for _ in range(7 - len(grads))]
    sums = np.zeros((1, len(given.formed), 10, shape[1]))
    tables = (cpu._table(routine, given.source) for routine in (forward_tiles, backward_tiles))
    forward, backward = ((table, given.tiles, x.numel(), *given.arguments, *grid) for table in tables)
    there = best(lambda: share(forward_parts, *forward, line, out))
    back = best(lambda: share(backward_parts, *backward, out, sums, *map(flat_of, grads)))
    return there, back


def main():
    torch.set_num_threads(1)
    print(f"{'shape':<14}{'coefficients':<14}{'steps':>6}{'forward ns':>12}{'backward ns':>13}")
    for shape in SHAPES:
        for formed in (False, True):
            for num_steps in (0, 5):
                numbers = 1e9 * LANES / torch.Size(shape).numel()
                there, back = (numbers * seconds for seconds in passes(shape, formed, num_steps))
                words = "formed" if formed else "read"
                print(f"{'x'.join(map(str, shape)):<14}{words:<14}{num_steps:>6}{there:>12.1f}{back:>13.1f}")


if __name__ == "__main__":
    main()
