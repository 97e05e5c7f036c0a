"""The example that packs a trained net into a small file, on a net trained for a moment."""

import dataclasses

import pytest
import torch
import under_100kb as example

import pocketcnn as pc
from pocketcnn.train import TrainConfig, fit

CONFIG = TrainConfig(epochs=1, batch_size=48, lr=0.02, precision="float32", channels_last="off", teacher_weight=0.9)


@pytest.fixture(scope="module")
def teacher(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
    fit(net, few, dataclasses.replace(CONFIG, lr=0.1), folder)
    return folder / "model.safetensors"


def test_the_file_keeps_to_the_budget_and_uses_it(teacher, few, tmp_path):
    found = example.run(teacher, few, tmp_path, CONFIG, max_bytes=30_000, images=64)
    name = next(key.removesuffix(" bytes") for key in found if key.startswith("ring") and key.endswith("bytes"))
    assert 29_900 < found[f"{name} bytes"] <= 30_000
    path = tmp_path / f"{name.replace(' ', '_').replace(',', '')}.safetensors"
    assert path.stat().st_size == found[f"{name} bytes"]
    assert pc.load(path)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert found["plain int8 bytes"] < found["plain bytes"]


def test_a_budget_that_no_ring_meets(teacher, few, tmp_path):
    with pytest.raises(ValueError, match="5,000 bytes are too few: with a ring of 50 parameters the file takes 17,"):
        example.run(teacher, few, tmp_path, CONFIG, max_bytes=5000)
