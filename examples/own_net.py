"""A net of your own, all the way: trained in plain PyTorch, shrunk to a budget of bytes, run by onnxruntime alone.

    python examples/own_net.py --data cifar10 --max-bytes 100k --epochs 6 --minutes 10
    python examples/own_net.py --data digits --max-bytes 40k --epochs 6 --minutes 0.5

The net below knows nothing of pocketcnn, and neither does its training. The same by a command, from the file of its weights:

    pocketcnn shrink examples/own_net.py:build:in_channels=3 --weights runs/own/own.pth --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 \
        --data cifar10 --max-bytes 100k
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.data import DataSet, load

MEAN, STD = 0.5, 0.25  # of every channel, as this net happens to be trained


def build(in_channels: int = 3, num_classes: int = 10, width: int = 32) -> nn.Module:
    """Makes a net like VGG: three groups of two 3x3 convolutions, each group half as large and twice as wide as the last."""
    parts: list[nn.Module] = []
    for group in range(3):
        for _ in range(2):
            channels = width << group
            parts += [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
        parts.append(nn.MaxPool2d(2) if group < 2 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(in_channels, num_classes))


def normalised(pixels: Tensor) -> Tensor:
    """Normalises uint8 images as this net expects them."""
    return (pixels.float() / 255 - MEAN) / STD


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains a net in plain PyTorch: SGD with one cycle, shifted and mirrored images."""
    torch.manual_seed(0)
    steps = epochs * -(-len(labels) // 128)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    net.train().to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(128):
            x = F.pad(normalised(images[chosen]), (2, 2, 2, 2), mode="reflect")
            top, left = torch.randint(5, (2,)).tolist()
            x = x[:, :, top : top + images.shape[2], left : left + images.shape[3]]
            x = x.flip(3) if images.shape[1] == 3 and torch.rand(()) < 0.5 else x
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)).float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def served_accuracy(path: Path, images: Tensor, labels: Tensor) -> float:
    """Runs an ONNX file with onnxruntime, and nothing else, and returns the share of images that it classifies rightly."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = 0
    for part, wanted in zip(images.split(250), labels.split(250), strict=True):
        (scores,) = session.run(["logits"], {"images": normalised(part).numpy()})
        right += int((scores.argmax(1) == wanted.numpy()).sum())
    return right / len(labels)


def main(data: DataSet, max_bytes: str, epochs: int, minutes: float, output: Path, **options: Any) -> tuple[Any, float]:
    """Trains the net, shrinks it and serves it; returns what `shrink` returns, and the accuracy of the ONNX file."""
    output.mkdir(parents=True, exist_ok=True)
    channels = data.input_size[0]
    net = build(channels, len(data.classes), **options)
    train(net, *data.train[:], epochs)
    torch.save(net.state_dict(), output / "own.pth")  # a checkpoint like any other

    notes = {"mean": [MEAN] * channels, "std": [STD] * channels}
    found = pc.shrink(net, data, max_bytes=max_bytes, minutes=minutes, notes=notes, output=output / "shrunk")
    served = served_accuracy(found.onnx, *data.test[:])
    print(found)
    print(f"{found.onnx.name}: {found.onnx_bytes:,} bytes, test accuracy {100 * served:.2f} % in onnxruntime alone")
    return found, served


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data set to train on")
    parser.add_argument("--max-bytes", default="100k", help="longest model file")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the plain training")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of training after shrinking")
    parser.add_argument("--output", type=Path, default=Path("runs/own"), help="folder for all files")
    given = parser.parse_args()
    main(load(given.data), given.max_bytes, given.epochs, given.minutes, given.output)
