"""Shrinks nets that this package neither made nor trained, and makes the table in docs/own_net.md.

    python benchmarks/own_nets.py --data ../shared/data/cifar10 --only vgg            # trains a net plainly, and shrinks it
    python benchmarks/own_nets.py --data ../shared/data/cifar10 --only resnet10t mobilenetv3 grey96 unet pair
    python benchmarks/own_nets.py                                                      # prints the table from the records

Nets of timm are trained at timm's normalisation. The last two have no labels: a net that removes noise, and one that compares two
images. They are judged by their outputs.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "own-nets"
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]
MEAN, STD = (0.5,), (0.25,)
HEADER = "| net | trained for | bytes | budget | what `shrink` chose | bytes | ONNX bytes | before | after | minutes |\n|---|---|---:|---:|---|---:|---:|---:|---:|---:|"


class Denoiser(nn.Module):
    """A small U-Net: it halves the image twice, goes back up, and adds what it finds to the image."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.one, self.two, self.three = _twice(3, width), _twice(width, 2 * width), _twice(2 * width, 4 * width)
        self.up_two, self.up_one = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.back_two, self.back_one = _twice(4 * width, 2 * width), _twice(2 * width, width)
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.max_pool2d(two, 2))
        two = self.back_two(torch.cat([self.up_two(three), two], 1))
        return x + self.out(self.back_one(torch.cat([self.up_one(two), one], 1)))


class Pair(nn.Module):
    """Tells how a second image was turned from a first one: by 0, 90, 180 or 270 degrees."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.eye = nn.Sequential(_twice(3, width), nn.MaxPool2d(2), _twice(width, 2 * width), nn.MaxPool2d(2))
        self.both = _twice(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.both(torch.cat([self.eye(first), self.eye(second)], 1)).mean((2, 3)))


def _twice(inputs: int, outputs: int) -> nn.Module:
    convs = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1))
    return nn.Sequential(*(part for conv in convs for part in (conv, nn.BatchNorm2d(outputs), nn.ReLU())))


@dataclass(frozen=True)
class Trial:
    """A net, how it is trained, and the budget that it is shrunk to."""

    name: str
    make: Callable[[], nn.Module]
    epochs: int
    max_bytes: str
    minutes: float
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for `pocketcnn.data.load`
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import pocketcnn as pc
        from foreign import import_library

        import_library("timm")  # also where it is in a folder of its own
        return pc.create_model(f"timm:{name}", num_classes=10)

    return make


def _vgg(**options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import own_net

        return own_net.build(**options)

    return make


_TIMM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TRIALS = {
    "vgg": Trial("VGG-like, 290k weights", _vgg(), 6, "100k", 10.0, mean=MEAN * 3, std=STD * 3),
    "resnet10t": Trial("timm:resnet10t", _timm("resnet10t"), 4, "1M", 6.0, **_TIMM),
    "mobilenetv3": Trial(
        "timm:mobilenetv3_small_050, 64 pixels", _timm("mobilenetv3_small_050"), 4, "250k", 6.0, {"image_size": 64}, **_TIMM
    ),
    "grey96": Trial(
        "VGG-like, grey images of 96 pixels", _vgg(in_channels=1, width=16), 1, "30k", 4.0,
        {"image_size": 96, "channels": 1, "limit": 10_000},
    ),
}  # fmt: skip


def train(net: nn.Module, inputs: Callable[[Tensor], Any], data: Any, epochs: int, loss: Callable[..., Tensor]) -> None:
    """Trains a net in plain PyTorch; `inputs` makes what the net is given, and what is wanted, of uint8 images."""
    torch.manual_seed(0)
    images, labels = data.train[:]
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    steps = epochs * -(-len(labels) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(128):
            pixels = images[chosen]
            pixels = pixels.flip(3) if torch.rand(()) < 0.5 else pixels
            given, wanted = inputs(pixels)
            with torch.autocast("cpu", torch.bfloat16):
                found = net(*given)
            optimizer.zero_grad()
            loss(found.float(), labels[chosen] if wanted is None else wanted).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def shrink_labelled(key: str, data_name: str, output: Path) -> dict[str, Any]:
    """Trains a classifier plainly, and shrinks it."""
    import own_net

    import pocketcnn as pc
    from pocketcnn.data import load

    trial = TRIALS[key]
    data = load(data_name, **trial.data)
    torch.manual_seed(0)
    net, began = trial.make(), time.monotonic()
    mean, std = (torch.tensor(values)[:, None, None] for values in (trial.mean, trial.std))
    if key == "vgg":
        own_net.train(net, *data.train[:], trial.epochs)
    else:
        train(net, lambda pixels: (((pixels / 255 - mean) / std,), None), data, trial.epochs, F.cross_entropy)
    minutes = (time.monotonic() - began) / 60
    notes = {"mean": trial.mean, "std": trial.std}
    found = pc.shrink(net, data, max_bytes=trial.max_bytes, minutes=trial.minutes, notes=notes, output=output / key)
    return _record(trial.name, f"{trial.epochs} epochs, {minutes:.1f} min", trial.max_bytes, found)


def shrink_unet(data_name: str, output: Path) -> dict[str, Any]:
    """Trains a net that removes noise, and shrinks it by its own outputs."""
    import pocketcnn as pc
    from pocketcnn.data import load

    data = load(data_name, limit=10_000)
    torch.manual_seed(0)
    net, began = Denoiser(), time.monotonic()

    def noisy(pixels: Tensor) -> tuple[tuple[Tensor], Tensor]:
        clean = pixels / 255 - 0.5
        return (clean + 0.1 * torch.randn_like(clean),), clean

    train(net, noisy, data, 3, F.mse_loss)
    minutes = (time.monotonic() - began) / 60
    inputs = noisy(data.train.images[:4000])[0]
    found = pc.shrink(net, inputs, max_bytes="60k", minutes=3.0, output=output / "unet")
    return _record("U-Net that removes noise", f"3 epochs, {minutes:.1f} min", "60k", found)


def shrink_pair(data_name: str, output: Path) -> dict[str, Any]:
    """Trains a net of two images, and shrinks it by its own outputs."""
    import pocketcnn as pc
    from pocketcnn.data import load

    data = load(data_name, limit=10_000)
    torch.manual_seed(0)
    net, began = Pair(), time.monotonic()

    def turned(pixels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        first = pixels / 255 - 0.5
        turns = torch.randint(4, (len(first),))
        second = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(first, turns, strict=True)])
        return (first, second + 0.1 * torch.randn_like(second)), turns

    train(net, turned, data, 3, F.cross_entropy)
    minutes = (time.monotonic() - began) / 60
    inputs = turned(data.train.images[:4000])[0]
    found = pc.shrink(net, inputs, max_bytes="80k", minutes=3.0, output=output / "pair")
    return _record("net of two images", f"3 epochs, {minutes:.1f} min", "80k", found)


def _record(name: str, trained: str, budget: str, found: Any) -> dict[str, Any]:
    return {
        "net": name,
        "trained": trained,
        "budget": budget,
        "label": found.label,
        "bytes_before": found.bytes_before,
        "bytes_after": found.bytes_after,
        "onnx_bytes": found.onnx_bytes,
        "before": found.before,
        "after": found.after,
        "seconds": found.seconds,
        "candidates": list(found.candidates),
    }


def table(records: Mapping[str, Any]) -> str:
    """The table of the records, in Markdown."""
    lines = [HEADER]
    for record in records.values():
        before, after = record["before"], record["after"]
        if "accuracy" in after:
            scores = [f"{100 * scores['accuracy']:.2f} %" for scores in (before, after)]
        else:
            same = f", {100 * after['agreement']:.1f} % agree" if "agreement" in after else ""
            scores = ["its own outputs", f"error {100 * after['error']:.1f} %{same}"]
        onnx = "-" if record["onnx_bytes"] is None else f"{record['onnx_bytes']:,}"
        cells = [
            record["net"], record["trained"], f"{record['bytes_before']:,}", record["budget"], record["label"],
            f"{record['bytes_after']:,}", onnx, *scores, f"{record['seconds'] / 60:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from pocketcnn.support.files import read_json, write_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--only", nargs="+", default=[*TRIALS, "unet", "pair"], help="trials to run")
    parser.add_argument("--output", type=Path, help="folder for all files; a temporary one by default")
    given = parser.parse_args()
    path = RESULTS / "outcomes.json"
    records = read_json(path) if path.exists() else {}
    if given.data:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        logging.getLogger("onnxscript").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory() as place:
            output = given.output or Path(place)
            for key in given.only:
                if key in TRIALS:
                    records[key] = shrink_labelled(key, given.data, output)
                else:
                    records[key] = {"unet": shrink_unet, "pair": shrink_pair}[key](given.data, output)
                RESULTS.mkdir(parents=True, exist_ok=True)
                order = [*TRIALS, "unet", "pair"]
                write_json(path, {name: records[name] for name in order if name in records})
    print(table(read_json(path)))


if __name__ == "__main__":
    main()
