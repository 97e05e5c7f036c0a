"""Repeats the illustrative experiment of the Global layer's paper: MNIST, nets of 524 and 4,612 parameters, several seeds.

    python examples/mnist_illustrative.py --data mnist --rows conv_w1 pde_w1 --seeds 5 --output runs/mnist-illustrative
    python examples/mnist_illustrative.py --table results/mnist-illustrative

Nets this small leave a processor idle, so all seeds of a row train as one. `stack` lays equal nets side by side in the channels
of one net with grouped convolutions. Each net has its own images, gradients and clipping, and nothing of the others. Afterwards
`unstack` takes the nets apart, and each is tested and saved as an ordinary model.

Settings are the paper's unless a row says otherwise: SGD 0.01 with Nesterov momentum 0.9, weight decay 5e-4, batches of
128, gradients clipped at 5, no augmentation, 30 epochs. 5,000 of the training images are set aside for validation. The test
images are used once, after the last epoch.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn import kernels
from pocketcnn.data import DataSet, augment, load
from pocketcnn.data.augment import Augmentation
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.models.mnist_net import MnistNet
from pocketcnn.support.environment import environment
from pocketcnn.train.config import TrainConfig, learning_rate_scale

PAPER = TrainConfig(
    epochs=30, batch_size=128, lr=0.01, weight_decay=5e-4, clip_norm=5, schedule="steps", milestones=(60, 120, 160),
    decay=0.2, augment=False, precision="float32", channels_last="off",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the table: a net, its words in the table, and how it is trained."""

    net: Callable[[], nn.Module]
    says: str
    train: TrainConfig = PAPER


def named(**options: Any) -> Callable[[], nn.Module]:
    """Returns a function that makes a net of `create_model`, whose file needs no `base`."""
    return lambda: pc.create_model("mnist_net", **options)


def with_layer(wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer, **options: Any) -> Callable[[], nn.Module]:
    """Returns a function that makes a net around a Global layer with its own options, wrapped by `wrap`."""
    settings = {"velocity": "conv", "shared_velocity": True, "diffusivity": "constant", **options}
    return lambda: MnistNet(lambda channels: wrap(GlobalLayer(channels, **settings)))


class RowsApart(nn.Module):
    """The report's solver: in a tensor [batch, height, width, channels] it rolls axes 2 and 3, width and channels."""

    def __init__(self, layer: GlobalLayer) -> None:
        super().__init__()
        self.layer, self.channels = layer, layer.channels

    def forward(self, x: Tensor) -> Tensor:
        def turned(field: Any, axis: int) -> Any:
            """Swaps rows and channels, within each of the nets that lie side by side."""
            return field.unflatten(1, (-1, axis)).transpose(2, 3).flatten(1, 2) if isinstance(field, Tensor) else field

        fields = (x, *self.layer.velocities(x), *self.layer.diffusivities(x))
        h = kernels.advect_diffuse(*(turned(field, self.channels) for field in fields))
        return F.relu(self.layer.bn(turned(h, x.shape[2])))


class Backwards(nn.Module):
    """The paper's code: the velocity's sign is the opposite of the formula's, so features move up and to the left."""

    def __init__(self, layer: GlobalLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.layer.velocities(x)
        return F.relu(self.layer.bn(kernels.advect_diffuse(x, -u, -v, *self.layer.diffusivities(x))))


AUGMENTED = dataclasses.replace(PAPER, augment=True)
LONG = dataclasses.replace(PAPER, epochs=200)
ONE_CYCLE = dataclasses.replace(PAPER, schedule="one_cycle", lr=0.1, weight_decay=5e-5)

ROWS: dict[str, Row] = {
    **{
        f"{name}_w{width}": Row(named(width=width, **options), f"{says}, width {width}")
        for width in (1, 8)
        for name, says, options in (
            ("conv", "convolution", {"feature": "conv"}),
            ("residual", "residual", {"feature": "residual"}),
            ("pde", "Global, D = 1", {"feature": "pde"}),
            ("pde_perona_malik", "Global, D Perona-Malik", {"feature": "pde", "diffusivity": "perona_malik"}),
        )
    },
    "conv_w1_200": Row(named(feature="conv"), "convolution, 200 epochs", LONG),
    "residual_w1_200": Row(named(feature="residual"), "residual, 200 epochs", LONG),
    "pde_w1_200": Row(named(feature="pde"), "Global, 200 epochs", LONG),
    "replicate": Row(with_layer(boundary="replicate"), "Global, boundary replicate"),
    "zero": Row(with_layer(boundary="zero"), "Global, boundary zero"),
    "rows_apart": Row(with_layer(RowsApart), "Global, rows never interact (the report's solver)"),
    "backwards": Row(with_layer(Backwards), "Global, velocity of the opposite sign (the paper's code)"),
    "published_eps": Row(with_layer(published_eps=True), "Global, channel count as epsilon (the paper's code)"),
    "both_signs": Row(with_layer(velocity_activation="none"), "Global, no ReLU after the velocity"),
    "two_velocities": Row(with_layer(shared_velocity=False), "Global, u and v apart (535 numbers)"),
    "both_signs_one_cycle": Row(
        with_layer(velocity_activation="none"),
        "Global, no ReLU after the velocity, one cycle to 0.1, decay 5e-5",
        ONE_CYCLE,
    ),
    "conv_augmented": Row(named(feature="conv"), "convolution, flips and crops", AUGMENTED),
    "residual_augmented": Row(named(feature="residual"), "residual, flips and crops", AUGMENTED),
    "pde_augmented": Row(named(feature="pde"), "Global, flips and crops", AUGMENTED),
    "rows_apart_augmented": Row(with_layer(RowsApart), "Global, flips and crops, rows never interact", AUGMENTED),
}


# --- several nets in one ---------------------------------------------------------------------------------------------


class StackedLinear(nn.Module):
    """Linear layers of several nets, each on its own share of the features."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        copies = self.weight.shape[0]
        return (torch.einsum("bsi,soi->bso", x.unflatten(1, (copies, -1)), self.weight) + self.bias).flatten(1)


def stack(nets: Sequence[nn.Module]) -> nn.Module:
    """Lays equal nets side by side in the channels of one net.

    The nets may hold convolutions, batch norms, linear layers, and modules that treat each channel by itself.
    """
    stacked = copy.deepcopy(nets[0])
    for name, module in list(stacked.named_modules()):
        parts: list[Any] = [net.get_submodule(name) for net in nets]
        new: nn.Module
        if isinstance(module, nn.Conv2d):
            new = copy.deepcopy(module)
            new.groups, new.in_channels, new.out_channels = (
                n * len(nets) for n in (module.groups, module.in_channels, module.out_channels)
            )
            new.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        elif isinstance(module, nn.BatchNorm2d):
            new = copy.deepcopy(module)
            new.num_features *= len(nets)
            for parameter in ("weight", "bias"):
                setattr(new, parameter, nn.Parameter(torch.cat([getattr(part, parameter).detach() for part in parts])))
            for buffer in ("running_mean", "running_var"):
                setattr(new, buffer, torch.cat([getattr(part, buffer) for part in parts]))
        elif isinstance(module, nn.Linear):
            new = StackedLinear(parts)
        else:
            if isinstance(module, GlobalLayer):
                module.channels *= len(nets)
            continue
        parent, _, child = name.rpartition(".")
        setattr(stacked.get_submodule(parent), child, new)
    return stacked


@torch.no_grad()
def unstack(stacked: nn.Module, nets: Sequence[nn.Module]) -> None:
    """Copies the state of a stacked net back into the nets it was made of."""
    source = stacked.state_dict()
    for index, net in enumerate(nets):
        for name, tensor in net.state_dict().items():
            whole = source[name]
            tensor.copy_(whole if tensor.dim() == 0 else whole.reshape(len(nets), *tensor.shape)[index])


# --- training --------------------------------------------------------------------------------------------------------


def normalized(images: Tensor, data: DataSet) -> Tensor:
    """uint8 images as floats of zero mean and unit deviation."""
    return (images.float() / 255 - data.mean[0]) / data.std[0]


def train(nets: Sequence[nn.Module], seeds: Sequence[int], data: DataSet, config: TrainConfig, log: Any) -> list[Any]:
    """Trains nets side by side, each with its own order of images; returns a record for each epoch."""
    stacked = stack(nets).train()
    copies = len(nets)
    optimizer = torch.optim.SGD(
        stacked.parameters(), config.lr, momentum=config.momentum, nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images, labels = data.train.images, data.train.labels
    batches = len(images) // config.batch_size
    # Flipped digits are wrong; they are here because the report used them.
    shifts = Augmentation(crop=2, flip=True, cutout=0)
    epochs = []
    for epoch in range(config.epochs):
        start, losses = time.perf_counter(), torch.zeros(copies)
        orders = torch.stack([torch.randperm(len(images), generator=g) for g in generators])
        for batch in range(batches):
            rate = config.lr * learning_rate_scale(epoch * batches + batch, config.epochs * batches, config)
            optimizer.param_groups[0]["lr"] = rate
            chosen = orders[:, batch * config.batch_size : (batch + 1) * config.batch_size]
            x, y = images[chosen], labels[chosen]  # [copies, batch, 1, 28, 28]
            if config.augment:
                x = torch.stack([augment(part, shifts, g) for part, g in zip(x, generators, strict=True)])
            logits = stacked(normalized(x[:, :, 0], data).transpose(0, 1).contiguous())
            logits = logits.unflatten(1, (copies, -1)).transpose(1, 2)  # [batch, classes, copies]
            loss = F.cross_entropy(logits, y.T, reduction="none").mean(0)
            optimizer.zero_grad()
            loss.sum().backward()
            clip_each_(stacked, copies, config.clip_norm)
            optimizer.step()
            losses += loss.detach()
        unstack(stacked, nets)
        epochs.append(
            {
                "epoch": epoch + 1,
                "train_loss": (losses / batches).tolist(),
                "validation_accuracy": [accuracy(net, data, data.validation) for net in nets],
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
        log(epochs[-1])
    return epochs


def clip_each_(stacked: nn.Module, copies: int, limit: float) -> None:
    """Clips the gradient norm of each net, as `clip_grad_norm_` would for that net alone."""
    gradients = [p.grad.view(copies, -1) for p in stacked.parameters() if p.grad is not None]
    norms = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()
    scale = (limit / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale[:, None])


@torch.no_grad()
def accuracy(net: nn.Module, data: DataSet, images: Any) -> float:
    """Share of images that are classified correctly."""
    net.eval()
    right = 0
    for start in range(0, len(images), 1000):
        x, y = images.images[start : start + 1000], images.labels[start : start + 1000]
        right += int((net(normalized(x, data)).argmax(1) == y).sum())
    net.train()
    return right / len(images)


def run(name: str, data: DataSet, seeds: Sequence[int], epochs: int | None, output: Path) -> None:
    """Trains a row and writes `result.json`, `metrics.json` and the nets to a folder; skips a finished row."""
    row, folder = ROWS[name], output / name
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = row.train if epochs is None else dataclasses.replace(row.train, epochs=epochs)
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append(row.net())
    cost = pc.measure(nets[0], data.input_size)
    start = time.perf_counter()

    def log(epoch: dict[str, Any]) -> None:
        percent = 100 * mean(epoch["validation_accuracy"])
        print(f"{name}: epoch {epoch['epoch']}, validation {percent:.2f} %, {epoch['seconds']} s", flush=True)

    history = train(nets, seeds, data, config, log)
    for seed, net in zip(seeds, nets, strict=True):
        notes = {"data": "mnist", "classes": list(data.classes), "input_size": list(data.input_size),
                 "mean": list(data.mean), "std": list(data.std)}  # fmt: skip
        pc.save(net, folder / f"seed{seed}.safetensors", notes=notes)
    result = {
        "row": name,
        "says": row.says,
        "seeds": list(seeds),
        "test_accuracy": [accuracy(net, data, data.test) for net in nets],
        "validation_accuracy": history[-1]["validation_accuracy"],
        "trainable_params": cost.trainable_params,
        "total_params": cost.total_params,
        "macs_by_operator": cost.macs_by_operator,
        "train_images": len(data.train),
        "seconds": round(time.perf_counter() - start, 1),
        "train": dataclasses.asdict(config),
    }
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
    (folder / "metrics.json").write_text(json.dumps(history))
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


# --- the table -------------------------------------------------------------------------------------------------------

# Test accuracy in per cent: the paper's poster, and Mukherjee's report.
PUBLISHED = {
    "conv_w1": ("92.01", "64.59"), "residual_w1": ("92.53", "66.04"), "pde_w1": ("95.03", "65.31"),
    "pde_perona_malik_w1": ("", "66.24"), "conv_w8": ("", "93.02"), "residual_w8": ("", "95.58"),
    "pde_w8": ("", "95.80"), "pde_perona_malik_w8": ("", "95.20"), "pde_w1_200": ("95.03", ""),
}  # fmt: skip


def table(folder: Path) -> str:
    """Table of the finished rows, in the order of `ROWS`, as Markdown."""
    lines = [
        "| net | numbers | total | epochs | seeds | test % | best seed | poster | report |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ROWS:
        if (folder / name / "result.json").exists():
            result = json.loads((folder / name / "result.json").read_text())
            percent = [100 * accuracy for accuracy in result["test_accuracy"]]
            poster, report = PUBLISHED.get(name, ("", ""))
            lines.append(
                f"| {result['says']} | {result['trainable_params']:,} | {result['total_params']:,} "
                f"| {result['train']['epochs']} | {len(percent)} | {mean(percent):.2f} ± {stdev(percent) if percent[1:] else 0:.2f} "
                f"| {max(percent):.2f} | {poster} | {report} |"
            )
    return "\n".join(lines) + "\n"


def difference(folder: Path, one: str, other: str) -> str:
    """Mean difference of two rows in points, paired by seed, with its 95 % interval (Student's t)."""
    first, second = (json.loads((folder / name / "result.json").read_text())["test_accuracy"] for name in (one, other))
    gaps = [100 * (a - b) for a, b in zip(first, second, strict=False)]
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}[len(gaps)]
    half = quantile * stdev(gaps) / len(gaps) ** 0.5
    return f"{one} minus {other}: {mean(gaps):+.2f} points, 95 % interval {mean(gaps) - half:+.2f} to {mean(gaps) + half:+.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="mnist, or a folder with its parquet files")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--epochs", type=int, help="number of epochs; the row's own by default")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist-illustrative"), help="folder for the rows")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; torch's default if 0")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of finished rows; trains nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        finished = [name for name in ROWS if (given.table / name / "result.json").exists()]
        for one, other in (("pde_w1", "residual_w1"), ("pde_w1", "conv_w1"), ("pde_w8", "residual_w8")):
            if {one, other} <= set(finished):
                print(difference(given.table, one, other))
        raise SystemExit
    if given.threads:
        torch.set_num_threads(given.threads)
    mnist = load(given.data, validation=1 / 12)
    for row_name in given.rows:
        run(row_name, mnist, range(given.seeds), given.epochs, given.output)
