"""Measures what it costs to compare the values that kept kernels were made from, before each use.

    python benchmarks/kept_kernels.py [--rounds 41] [--batches 1 64]

Serves nets that keep kernels in three ways, in turns: with the comparison, without any (which would serve stale kernels), and
with kernels made anew each time. Images per second are of the median time. The nets are not trained, because weights do not
change the time.
"""

import argparse
import contextlib
import time
from statistics import median
from unittest import mock

import torch

import pocketcnn as pc
from pocketcnn.methods import _kept

NETS = {
    "puppet resnet20": lambda: pc.condense(pc.create_model("resnet20"), "puppet", depth="fixed"),
    "puppet resnet20, by entropy": lambda: pc.condense(pc.create_model("resnet20"), "puppet"),
    "puppet resnet18": lambda: pc.condense(pc.create_model("resnet18"), "puppet", depth="fixed"),
    "puppet resnet18, size 0.5": lambda: pc.condense(pc.create_model("resnet18"), "puppet", depth="fixed", size=0.5),
    "equilibrium": lambda: pc.create_model("equilibrium"),
}
WAYS = {
    "compared": contextlib.nullcontext,
    "not compared": lambda: mock.patch.object(_kept, "same_bits", return_value=True),
    "made anew": lambda: mock.patch.object(_kept, "same_bits", return_value=False),
}


def rates(net, x, rounds):
    """Images per second by way; the ways run in turns."""
    taken = {way: [] for way in WAYS}
    for _ in range(rounds + 2):
        for way, using in WAYS.items():
            with using(), torch.inference_mode():
                net(x)
                start = time.perf_counter()
                net(x)
                taken[way].append(time.perf_counter() - start)
    return {way: len(x) / median(times[2:]) for way, times in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    settings = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; images per second\n")
    print(f"{'net':<30}{'batch':>6}{''.join(f'{way:>14}' for way in WAYS)}{'cost':>8}")
    for name, make in NETS.items():
        net = make().eval()
        for batch in settings.batches:
            x = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            found = rates(net, x, settings.rounds)
            cost = found["not compared"] / found["compared"] - 1
            print(f"{name:<30}{batch:>6}{''.join(f'{rate:>14,.1f}' for rate in found.values())}{100 * cost:>7.1f}%")


if __name__ == "__main__":
    main()
