"""Puts a Global layer into a net of your own: plan, condense, train, save, load, measure; a minute on scikit-learn's digits.

    python examples/own_net.py --epochs 10 --output runs/own

The net below knows nothing of pocketcnn. Its stage is an `nn.Sequential` of equal blocks, which is all that `pde` needs: the
first block stays, and one solver replaces the three others.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.data import DataSet, load
from pocketcnn.train import TrainConfig, fit


class Block(nn.Module):
    """A 3x3 convolution with batch norm, and a shortcut around both."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class OwnNet(nn.Module):
    """A stem, four equal blocks, a classifier."""

    def __init__(self, channels=16, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.stage = nn.Sequential(*(Block(channels) for _ in range(4)))
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def main(data: DataSet, epochs: int, output: Path) -> dict[str, tuple[float, pc.Cost]]:
    """Trains the plain net and the net with a Global layer; returns test accuracy and cost of each, by name.

    Each net's cost is measured after loading it from its file.
    """
    plain = OwnNet(classes=len(data.classes))
    print(pc.plan(plain, "pde", input_size=data.input_size), "\n")
    small = pc.condense(plain, "pde")
    config = TrainConfig(epochs=epochs, lr=0.05, precision="float32", channels_last="off")
    found = {}
    for name, net in (("plain", plain), ("pde", small)):
        result = fit(net, data, config, output / name)
        again = pc.load(output / name, base=OwnNet(classes=len(data.classes)))
        found[name] = (result["test_accuracy"], pc.measure(again, data.input_size))
    for name, (accuracy, cost) in found.items():
        print(
            f"{name:<6} {100 * accuracy:6.2f} %  {cost.trainable_params:>7,} parameters  {cost.macs:>9,} multiply-adds  depth {cost.depth}"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="number of epochs")
    parser.add_argument("--output", type=Path, default=Path("runs/own"), help="folder for the two runs")
    given = parser.parse_args()
    main(load("digits"), given.epochs, given.output)
