"""Compares a ring with a deep equilibrium net of as many stored parameters: accuracy, the solver's residual, and time.

    pocketcnn compare --data cifar10 --models equilibrium --methods plain --epochs 5 --output runs/equilibrium
    pocketcnn compare --data cifar10 --models resnet20 --methods ring:size=0.1 --epochs 5 --output runs/ring
    python examples/equilibrium.py runs/equilibrium/equilibrium-plain/seed0 runs/ring/resnet20-ring-size=0.1/seed0 --data cifar10

Both nets see all test images, in float32. For the equilibrium net, the script records each image's relative residual
|f(z) - z| / |f(z)| where the solver stopped, and how often the solver applied its block. Times are medians, with the nets in
turns. The ring's kernels are read once beforehand, as when the net is served.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

import pocketcnn as pc
from pocketcnn.cost import count_params
from pocketcnn.data import load
from pocketcnn.support.environment import environment
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.surgery import as_served
from pocketcnn.train import evaluate
from pocketcnn.train.images import normalized

LIMIT = 1e-3  # the residual of every test image should lie below this
ROUNDS = 9


@torch.inference_mode()
def residuals(net, x, batch=250):
    """Each image's relative residual; for each batch, how often the block was applied."""
    found = [net.equilibrium(part)[1:] for part in x.split(batch)]
    return torch.cat([each for each, _ in found]), torch.tensor([float(steps) for _, steps in found])


@torch.inference_mode()
def milliseconds(nets, x):
    """Median milliseconds of a forward pass of each net, in turns; the first round warms up."""
    times = {name: [] for name in nets}
    for _ in range(ROUNDS + 1):
        for name, net in nets.items():
            start = time.perf_counter()
            net(x)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(taken[1:]) for name, taken in times.items()}


def measure(folders, data):
    """Measures each net; returns the records by the nets' names."""
    nets = {name: pc.load(folder / "model.safetensors") for name, folder in folders.items()}
    x = torch.cat(list(normalized(data.test.in_order(500), data)))
    served = {name: as_served(net) for name, net in nets.items()}
    one, many = milliseconds(served, x[:1]), milliseconds(served, x[:128])
    found = {}
    for name, net in nets.items():
        found[name] = {
            "numbers": count_params(net)[1],
            "bytes": (folders[name] / "model.safetensors").stat().st_size,
            "accuracy": evaluate(net, data)["test_accuracy"],
            "macs": pc.measure(net, data.input_size).macs,
            "ms_one": one[name],
            "ms_128": many[name],
        }
    errors, steps = residuals(nets["equilibrium"], x)
    found["equilibrium"] |= {
        "largest_residual": errors.max().item(),
        "median_residual": errors.median().item(),
        "share_above_limit": (errors > LIMIT).double().mean().item(),
        "steps_mean": steps.mean().item(),
        "steps_max": steps.max().item(),
    }
    return found


def table(found):
    """The records as Markdown."""
    lines = ["| net | numbers | file, bytes | test accuracy % | MACs of an image | ms, 1 image | ms, 128 images |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {name} | {one['numbers']:,} | {one['bytes']:,} | {100 * one['accuracy']:.2f} | {one['macs']:,} "
        f"| {one['ms_one']:.2f} | {one['ms_128']:.1f} |"
        for name, one in found.items()
    ]
    solved = found["equilibrium"]
    lines.append(
        f"\nResiduals of the equilibrium net: largest {solved['largest_residual']:.1e}, median "
        f"{solved['median_residual']:.1e}, above {LIMIT:.0e}: {100 * solved['share_above_limit']:.2f} % of the test images; "
        f"its block is applied {solved['steps_mean']:.1f} times to a batch of 250, {solved['steps_max']:.0f} times at most."
    )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("equilibrium", type=Path, help="folder of the equilibrium net's run")
    parser.add_argument("ring", type=Path, help="folder of the ring net's run")
    parser.add_argument("--data", default="cifar10", help="data set, as for pocketcnn train")
    parser.add_argument("--output", type=Path, default=Path("runs/ring-and-equilibrium"), help="folder for the records")
    given = parser.parse_args()
    found = measure({"equilibrium": given.equilibrium, "ring": given.ring}, load(given.data))
    write_json(make_folder(given.output) / "result.json", {**found, "environment": environment()})
    write_atomically(given.output / "table.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
