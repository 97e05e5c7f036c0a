"""A net of one's own on the command line: a function in a file, trained elsewhere, its weights in a .pth."""

import re

import pytest
import torch
from torch.nn import functional as F

from pocketcnn.checkpoint import read_header
from pocketcnn.cli import main
from pocketcnn.models import builders
from pocketcnn.models.own_code import imported

CODE = """
from torch import nn

def build(num_classes=10, width=8):
    convs = [nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)]
    parts = [part for conv in convs for part in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, num_classes))
"""


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """The file with the function, and the weights of a net trained by hand, at a normalisation of its own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(CODE)
    (folder / "names.txt").write_text("\n".join(digits.classes))
    torch.manual_seed(0)
    net = imported(f"{folder}/mine.py:build")()
    x, y = (digits.train.images.float() / 255 - 0.3) / 0.4, digits.train.labels
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(4):
        for chosen in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    torch.save({"model": {f"module.{name}": value for name, value in net.state_dict().items()}}, folder / "mine.pth")
    return folder


def run(folder, line, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(builders, "_imported", {})  # each command line is a process of its own
    with pytest.raises(SystemExit) as left:
        main(line.replace("OWN", "mine.py:build --weights mine.pth --mean 0.3 --std 0.4").split())
    return left.value.code or 0


@pytest.mark.usefixtures("one_round")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate --model OWN --data digits", r"test accuracy 9\d"),
        ("plan --model mine.py:build --input-size 1 8 8", r"RingConv2d"),
        ("measure mine.py:build:width=4 --input-size 1 8 8 --runs 1", r"trainable_params +\d"),
        ("sensitivity OWN --data digits --images 64", r"error per kB"),
        ("pack OWN --storage int8 --output packed.safetensors --data digits", r"after .* test accuracy 9\d"),
        ("export OWN --data digits --output mine.onnx", r"mine\.onnx"),
        ("picture OWN --data digits --images 0 --output pictures", r"maps\.svg"),
        ("similarity OWN --data digits --images 32 --output pictures", r"mine"),
        ("publish OWN --data digits --output published", r"folder: published"),
        ("shrink OWN --data digits --max-bytes 6k --minutes 0.03 --no-sensitive --no-onnx", r"-> [\d,]+ bytes"),
        ("compare --models OWN --from-trained --methods ring:size=0.5 --data digits --epochs 1 --limit 200", "ring:size=0.5"),
        ("distil --teacher OWN --data digits --epochs 1 --limit 200 --output runs/d", r"model file: runs/d"),
        ("train --model OWN --data digits --epochs 1 --limit 200 --output runs/t", r"model file: runs/t"),
        ("train --model mine.py:build:width=4 --epochs 1 --limit 200 --output runs/f", r"mine.py:build width=4 plain"),
    ],
)  # fmt: skip
def test_every_verb_takes_it(line, said, folder, monkeypatch, capsys):
    assert run(folder, line, monkeypatch) == 0, capsys.readouterr().err
    assert re.search(said, capsys.readouterr().out)


def test_from_weights_to_a_small_file_that_needs_its_base(folder, monkeypatch, capsys):
    line = "condense --model OWN --method ring:size=0.4,scheme=windows --initialize fit --data digits --output small.safetensors"
    assert run(folder, line, monkeypatch) == 0
    notes = read_header(folder / "small.safetensors")["notes"]
    assert (notes["mean"], notes["input_size"], notes["data"]) == ([0.3], [1, 8, 8], "digits")
    assert run(folder, "evaluate --model small.safetensors", monkeypatch) == 2
    assert (
        "made by mine.py:build, code that no file may start by itself; if you trust it, pass --base mine.py:build"
        in (capsys.readouterr().err)
    )
    assert run(folder, "evaluate --model small.safetensors --base mine.py:build", monkeypatch) == 0
    assert re.search(r"test accuracy 9\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate --model none.py:build --data digits", "BadFactory: none.py:build: there is no file none.py"),
        ("evaluate --model mine.py:make --data digits", "has no 'make'; it has: build"),
        ("evaluate --model mine.py:build --data digits", "is not trained; give its weights with --weights"),
        ("evaluate --model mine.py:build:width=4 --weights mine.pth --data digits", "WrongWeights: mine.pth: weights of another net"),
        ("evaluate --model mine.py:build --weights none.pth --data digits", "none.pth: no such file of weights"),
        ("evaluate --model OWN", "does not say which data it was trained on; name some with --data|--data"),
        ("evaluate --model OWN --data digits --classes mine.py", "has 10 outputs, and --classes names 5 classes"),
        ("evaluate --model cifar10/resnet20 --weights mine.pth", "has its weights; leave --weights out"),
        ("evaluate --model mine.py:build --base mine.py:build --weights mine.pth", "--base is for a model file"),
        ("evaluate --model mine.py:build --weights mine.pth --mean 127 --std 40 --data digits", "divide by 255"),
        ("evaluate --model mine.py:build --weights mine.pth --mean 0.3 0.3 --std 0.4 --data digits", "for each channel"),
        ("classify mine.py --model OWN", "it is not known what its images and classes are .classes, input_size.*--classes"),
        ("shrink OWN --data digits --max-bytes 500 --output runs/n", "NothingFits: 500 bytes are too few"),
        ("compare --models mine.py:build --weights mine.pth --data digits", "--from-trained"),
        ("compare --models mine.py:build --stem small --data digits --epochs 1", "no option 'stem'"),
        ("evaluate --model mine.py:build --weights mine.pth --mean 0.3 --data digits", "give --mean and --std, or neither"),
        ("shrink OWN --data digits --max-bytes 6k --stream --image-size 8", "leave --stream out"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(line, said, folder, monkeypatch, capsys):
    assert run(folder, line, monkeypatch) == 2
    assert re.search(said, capsys.readouterr().err)
