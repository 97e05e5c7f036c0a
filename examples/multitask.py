"""Trains three tasks on MNIST with encoders that share kernels: the digit, the image through a bottleneck, its rotation.

    python examples/multitask.py --data mnist --seeds 3 --output runs/multitask
    python examples/multitask.py --table results/multitask

The encoders get their kernels in four ways (`sharing.MODES`). `ring` and `reuse` store the kernels of one encoder; `separate`
is narrower, so that it stores as many parameters; `unshared` has all the kernels of the full width.

The losses are cross entropy for the digit and for the rotation (by 0, 90, 180 or 270 degrees), and 10 times the squared error
of the image rebuilt from 8 values. The test images are used once, at the end, each turned in all four ways. Finished runs are
read, not repeated, so the same command resumes.

After the multi-task experiment of Wang et al., Recurrent Parameter Generators (WACV 2023).
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import sharing
import torch
from torch.nn import functional as F

from pocketcnn.data import load
from pocketcnn.models.multitask import MultiTask
from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.modules import evaluating
from pocketcnn.train.config import TrainConfig, learning_rate_scale

SUBNETS = "tasks.*"
REBUILDING = 10  # weight of the squared error, which without it is a tenth of the cross entropies


@dataclass(frozen=True)
class Settings:
    """Settings of a run, the same for all modes."""

    channels: int = 20
    epochs: int = 6
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 1e-4


def pixels(images, data):
    """uint8 images as floats of zero mean and unit deviation."""
    x = (images.float() / 255 - data.mean[0]) / data.std[0]
    return x.contiguous(memory_format=torch.channels_last)


def turn(images, turns):
    """Turns each image by its number of quarter turns."""
    return torch.stack([images.rot90(k, (2, 3)) for k in range(4)])[turns, torch.arange(len(images))]


def train(net, data, settings, seed):
    """Trains a net on all three tasks at once; returns the losses by epoch and the images per second."""
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule, generator = TrainConfig(schedule="one_cycle"), torch.Generator().manual_seed(seed)
    batches = max(1, len(data.train) // settings.batch_size)
    epochs, start = [], time.perf_counter()
    for epoch in range(settings.epochs):
        order, total = torch.randperm(len(data.train), generator=generator), torch.zeros(3)
        for batch in range(batches):
            scale = learning_rate_scale(epoch * batches + batch, settings.epochs * batches, schedule)
            optimizer.param_groups[0]["lr"] = settings.lr * scale
            images, labels = data.train[order[batch * settings.batch_size : (batch + 1) * settings.batch_size]]
            turns = torch.randint(0, 4, (len(images),), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                classes, rebuilt, turned = net(pixels(images, data), pixels(turn(images, turns), data))
            losses = torch.stack([
                F.cross_entropy(classes.float(), labels), F.mse_loss(rebuilt.float(), images.float() / 255),
                F.cross_entropy(turned.float(), turns),
            ])  # fmt: skip
            optimizer.zero_grad()
            (losses * torch.tensor([1, REBUILDING, 1])).sum().backward()
            optimizer.step()
            total += losses.detach()
        epochs.append((total / batches).tolist())
        print(f"  epoch {epoch + 1}: digit {epochs[-1][0]:.3f}, image {epochs[-1][1]:.4f}, rotation {epochs[-1][2]:.3f}",
              flush=True)  # fmt: skip
    return epochs, settings.epochs * batches * settings.batch_size / (time.perf_counter() - start)


def measure(net, data, split):
    """Accuracy of digits and of rotations, and mean squared error of pixels in [0, 1]."""
    right, error, right_turns = 0, 0.0, 0
    with evaluating(net):
        for start in range(0, len(split), 500):
            images, labels = split[start : start + 500]
            for k in range(4):
                turns = torch.full((len(images),), k)
                classes, rebuilt, turned = net(pixels(images, data), pixels(turn(images, turns), data))
                right_turns += int((turned.argmax(1) == turns).sum())
            right += int((classes.argmax(1) == labels).sum())
            error += float((rebuilt - images.float() / 255).square().mean((1, 2, 3)).sum())
    count = len(split)
    return {"accuracy": right / count, "rotation_accuracy": right_turns / (4 * count), "error": error / count}


def run(mode, seed, data, settings, output):
    """Trains one net and writes its record; a finished run is read instead."""

    def work():
        net, channels = sharing.make(mode, MultiTask, SUBNETS, settings.channels, seed)
        losses, speed = train(net, data, settings, seed)
        return net, {
            "mode": mode, "seed": seed, "channels": channels, "train_images_per_second": speed, "loss": losses,
            "validation": measure(net, data, data.validation), "test": measure(net, data, data.test),
        }  # fmt: skip

    settings_of_run = {**dataclasses.asdict(settings), "data": data.fingerprint}
    result = sharing.recorded(output / mode / f"seed{seed}", settings_of_run, work)
    found = result["validation"]
    print(f"{mode}, seed {seed}: validation digits {100 * found['accuracy']:.2f} %, rotation "
          f"{100 * found['rotation_accuracy']:.2f} %, image {found['error']:.4f}", flush=True)  # fmt: skip
    return result


def table(folder):
    """Table of the finished modes, as Markdown."""
    return sharing.table(
        folder,
        {
            "digits %": (lambda result: 100 * result["test"]["accuracy"], 2),
            "rotation %": (lambda result: 100 * result["test"]["rotation_accuracy"], 2),
            "image, squared error": (lambda result: result["test"]["error"], 4),
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="mnist, or a folder with its parquet files")
    parser.add_argument("--modes", nargs="+", default=list(sharing.MODES), choices=sharing.MODES, metavar="MODE")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--output", type=Path, default=Path("runs/multitask"), help="folder for the runs")
    parser.add_argument("--limit", type=int, help="use at most this many training images")
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of finished runs; trains nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    data = load(given.data, validation=1 / 12, limit=given.limit)
    settings = Settings(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)})
    for seed in range(given.seeds):
        for mode in given.modes:
            run(mode, seed, data, settings, given.output)
    write_atomically(make_folder(given.output) / "table.md", table(given.output))
    print(table(given.output))


if __name__ == "__main__":
    main()
