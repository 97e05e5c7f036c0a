"""Trains stacked hourglasses whose stages share kernels to find the 14 joints of rendered figures.

    python examples/keypoints.py --seeds 3 --output runs/keypoints
    python examples/keypoints.py --table results/keypoints
    python examples/keypoints.py --picture runs/keypoints

The stages get their kernels in four ways (`sharing.MODES`). `ring` and `reuse` store the kernels of one stage; `separate` is
narrower, so that it stores as many parameters; `unshared` has all the kernels of the full width.

Every training image is rendered for its step and seen once. Validation and test images have seeds of their own; the test
images are used once, at the end. The error is the mean distance in pixels between a joint and where it was found. PCK is the
share of joints found within 5 % of the image's side. Finished runs are read, not repeated, so the same command resumes.

The task stands in for the pose estimation of Wang et al., Recurrent Parameter Generators (WACV 2023).
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sharing
import torch

import pocketcnn as pc
from pocketcnn.data.figures import JOINTS, LIMBS, figures
from pocketcnn.models.hourglass import StackedHourglass
from pocketcnn.pictures import write_figure
from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.modules import evaluating
from pocketcnn.support.plots import pyplot
from pocketcnn.train.config import TrainConfig, learning_rate_scale

SUBNETS = "stages.*"
TEST, VALIDATION = 0, 1  # seeds of images; the seeds of training images begin at 2**32
WITHIN = 0.05  # a joint found within this share of the image's side counts
SIGMA = 1.0  # standard deviation of the targets' bell, in pixels of the heatmap


@dataclass(frozen=True)
class Settings:
    """Settings of a run, the same for all modes."""

    size: int = 48
    stages: int = 4
    channels: int = 24
    steps: int = 2500
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 1e-4
    limit: int = 4000  # number of validation and of test images


def targets(joints, size, side):
    """Bells around the joints: [batch, joints, 2] in pixels of the image to [batch, joints, side, side]."""
    centre = (joints + 0.5) * (side / size) - 0.5
    x, y = (torch.exp(-((torch.arange(side) - centre[..., axis, None]) ** 2) / (2 * SIGMA**2)) for axis in (0, 1))
    return y[..., :, None] * x[..., None, :]


def decode(heatmaps, size):
    """Positions of the peaks: [..., side, side] to [..., 2], (x, y) in pixels of the image.

    As in the hourglass paper, a peak is moved by a quarter of a pixel of the map towards its higher neighbour.
    """
    side = heatmaps.shape[-1]
    rows, columns = heatmaps.amax(-1), heatmaps.amax(-2)
    place = torch.stack([columns.argmax(-1), rows.argmax(-1)], -1)
    flat = heatmaps.flatten(-2)

    def at(x, y):
        return flat.gather(-1, (y.clamp(0, side - 1) * side + x.clamp(0, side - 1))[..., None])[..., 0]

    x, y = place.unbind(-1)
    slope = torch.stack([at(x + 1, y) - at(x - 1, y), at(x, y + 1) - at(x, y - 1)], -1)
    return (place + 0.25 * slope.sign() + 0.5) * (size / side) - 0.5


def pixels(images):
    """uint8 images as the net's input, in [-1, 1]."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train(net, settings, seed):
    """Trains a net on figures rendered for each step; returns the loss by step and the images per second."""
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule = TrainConfig(schedule="one_cycle")
    losses, start = [], time.perf_counter()
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * learning_rate_scale(step, settings.steps, schedule)
        images, joints = figures(settings.batch_size, size=settings.size, seed=((seed + 1) << 32) + step)
        with torch.autocast("cpu", torch.bfloat16):
            heatmaps = net(pixels(images)).float()
        wanted = targets(joints, settings.size, heatmaps.shape[-1])
        loss = (heatmaps - wanted[:, None]).square().sum((-2, -1)).mean()  # over every stage
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}: loss {sum(losses[-100:]) / 100:.3f}", flush=True)
    return losses, settings.steps * settings.batch_size / (time.perf_counter() - start)


def found_joints(net, images):
    """Joints that each stage finds in uint8 images: [images, stages, joints, 2] in pixels."""
    with evaluating(net):
        return torch.cat([decode(net(pixels(batch)), images.shape[-1]) for batch in images.split(100)])


def measure(net, settings, seed):
    """Mean error in pixels and PCK of each stage, on the images of one seed."""
    images, joints = figures(settings.limit, size=settings.size, seed=seed)
    distance = (found_joints(net, images) - joints[:, None]).norm(dim=-1)
    return {
        "error_px": distance.mean((0, 2)).tolist(),
        "pck": (distance <= WITHIN * settings.size).float().mean((0, 2)).tolist(),
    }


def plain(settings):
    """Returns a function that makes a net without sharing, given its channels."""
    return partial(StackedHourglass, settings.stages, num_joints=len(JOINTS))


def run(mode, seed, settings, output):
    """Trains one net and writes its record; a finished run is read instead."""

    def work():
        net, channels = sharing.make(mode, plain(settings), SUBNETS, settings.channels, seed)
        losses, speed = train(net, settings, seed)
        return net, {
            "mode": mode, "seed": seed, "channels": channels, "train_images_per_second": speed, "loss": losses,
            "validation": measure(net, settings, VALIDATION), "test": measure(net, settings, TEST),
        }  # fmt: skip

    result = sharing.recorded(output / mode / f"seed{seed}", dataclasses.asdict(settings), work)
    error, pck = (result["validation"][name][-1] for name in ("error_px", "pck"))
    print(f"{mode}, seed {seed}: validation error {error:.2f} px, PCK {100 * pck:.1f} %", flush=True)
    return result


def table(folder):
    """Table of the finished modes, as Markdown: error after each stage, PCK after the last."""
    found = sharing.records(folder)
    stages = next(iter(found.values()))[0]["settings"]["stages"] if found else 0
    errors = {
        f"error px, stage {stage + 1}": (lambda result, stage=stage: result["test"]["error_px"][stage], 2)
        for stage in range(stages)
    }
    return sharing.table(folder, {**errors, "PCK %": (lambda result: 100 * result["test"]["pck"][-1], 1)})


def picture(folder, count=5):
    """Draws test images in rows; in columns the true joints and those that each mode's last stage found. Returns the paths."""
    found = sharing.records(folder)
    settings = Settings(**next(iter(found.values()))[0]["settings"])
    images, joints = figures(count, size=settings.size, seed=TEST)
    columns = {"truth": joints}
    for mode, (first, *_) in found.items():
        path = folder / mode / f"seed{first['seed']}" / "model.safetensors"
        net = pc.load(path, base=plain(settings)(channels=first["channels"]))
        columns[mode] = found_joints(net, images)[:, -1]
    plots = pyplot()
    figure, axes = plots.subplots(
        count, len(columns), figsize=(1.7 * len(columns), 1.7 * count + 0.3), squeeze=False, layout="constrained"
    )
    colours = {"left": "#ff5a36", "right": "#35c7ff"}
    for row in range(count):
        for axis, placed in zip(axes[row], columns.values(), strict=True):
            axis.imshow(images[row].permute(1, 2, 0).numpy(), alpha=0.75)
            axis.set_axis_off()
            axis.grid(False)
            for ends in LIMBS:
                x, y = placed[row, [JOINTS.index(end) for end in ends]].T.tolist()
                sides = {end.split("_")[0] for end in ends} & colours.keys()
                colour = colours[sides.pop()] if len(sides) == 1 else "white"
                axis.plot(x, y, color="black", linewidth=2.8, solid_capstyle="round")
                axis.plot(x, y, color=colour, linewidth=1.5, solid_capstyle="round")
            axis.set_xlim(-0.5, settings.size - 0.5)
            axis.set_ylim(settings.size - 0.5, -0.5)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    return write_figure(figure, folder, "poses")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=list(sharing.MODES), choices=sharing.MODES, metavar="MODE")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--output", type=Path, default=Path("runs/keypoints"), help="folder for the runs")
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of finished runs; trains nothing")
    parser.add_argument(
        "--picture", type=Path, metavar="FOLDER", help="draw the joints that finished runs find; trains nothing"
    )
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
    if given.picture:
        print(*picture(given.picture), sep="\n")
    if given.table or given.picture:
        return
    settings = Settings(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)})
    for seed in range(given.seeds):
        for mode in given.modes:
            run(mode, seed, settings, given.output)
    write_atomically(make_folder(given.output) / "table.md", table(given.output))
    print(table(given.output))


if __name__ == "__main__":
    main()
