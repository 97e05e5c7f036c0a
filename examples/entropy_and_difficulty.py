"""Compares a trained net's errors on simple and complex images: does the entropy of an image predict the depth it needs?

    python examples/entropy_and_difficulty.py runs/cifar10/resnet32_4stage-plain --data cifar10

Each measure of complexity sorts the validation images into quarters, from the simplest to the most complex. The first table
shows the share that the net gets wrong in each quarter, and the rank correlation of the measure with the net's loss. If the
net's depth depends on the image, a second table shows its accuracy in each quarter with all images at the same level: the
effect of depth on simple and on complex images.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.cost import gauge_of
from pocketcnn.data import load
from pocketcnn.numerics import edge_density, image_entropy, image_variance

MEASURES = {
    "entropy": image_entropy,
    "pixel term": lambda x: image_entropy(x, term="pixel"),
    "frequency term": lambda x: image_entropy(x, term="frequency"),
    "variance": image_variance,
    "edges": edge_density,
}


def ranks(values):
    return values.argsort().argsort().double()


def rank_correlation(one, other):
    """Spearman's rank correlation, between -1 and 1."""
    return torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1].item()


def quarters(values):
    """Indices of the images in each quarter, the lowest values first."""
    return values.argsort().chunk(4)


@torch.inference_mode()
def outcome(net, x, labels):
    """For each image: True if the net is right, and its loss."""
    logits = torch.cat([net(batch) for batch in x.split(250)])
    return logits.argmax(1) == labels, F.cross_entropy(logits, labels, reduction="none")


def table(net, images, mean, std, labels):
    """The tables as Markdown."""
    pixels = images.float() / 255
    x = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    right, loss = outcome(net, x, labels)
    lines = [
        "| measure | simplest quarter wrong % | 2nd | 3rd | most complex | rank correlation with loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, measure in MEASURES.items():
        values = torch.cat([measure(batch) for batch in pixels.split(500)])
        wrong = [f"{100 * (~right[part]).double().mean():.1f}" for part in quarters(values)]
        lines.append(f"| {name} | {' | '.join(wrong)} | {rank_correlation(values, loss):+.2f} |")
    gauge = gauge_of(net)
    if gauge is not None:
        values = torch.cat([gauge.value(batch) for batch in x.split(500)])
        own_levels = gauge.levels_of(x)
        lines += [
            "",
            "| all images at | simplest quarter right % | 2nd | 3rd | most complex |",
            "|---|---:|---:|---:|---:|",
        ]
        for level in range(gauge.levels):
            with gauge.pinned(level):
                found, _ = outcome(net, x, labels)
            shown = [f"{100 * found[part].double().mean():.1f}" for part in quarters(values)]
            lines.append(
                f"| level {level} ({100 * (own_levels == level).double().mean():.0f} % are of it) | {' | '.join(shown)} |"
            )
        shown = [f"{100 * right[part].double().mean():.1f}" for part in quarters(values)]
        lines.append(f"| their own | {' | '.join(shown)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model file, or a folder that holds one")
    parser.add_argument("--data", required=True, help="data set, as for pocketcnn train")
    given = parser.parse_args()
    path = given.model if given.model.is_file() else next(iter(sorted(given.model.rglob("model.safetensors"))))
    net = pc.load(path).eval()
    data = load(given.data)
    print(f"{path}: {len(data.validation)} validation images\n")
    print(table(net, data.validation.images, data.mean, data.std, data.validation.labels))


if __name__ == "__main__":
    main()
