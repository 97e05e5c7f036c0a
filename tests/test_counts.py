"""Exact counts of published nets: distinct trainable numbers, and those with running statistics."""

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cost import count_params
from pocketcnn.methods.ring import RingConv2d


def counts(name, **options):
    with torch.device("meta"):
        return count_params(pc.create_model(name, **options))


@pytest.mark.parametrize(
    ("name", "options", "trainable", "total"),
    [
        ("resnet32_4stage", {}, 841_050, 844_922),
        ("resnet32", {}, 466_906, None),
        ("resnet32", {"num_classes": 100}, 472_756, None),
        ("resnet18", {"stem": "small", "num_classes": 10}, 11_173_962, None),
        ("resnet18_involution", {}, 5_116_682, None),
        ("resnet18_condconv", {}, 29_982_314, None),
        ("resnet18", {}, 11_689_512, None),
        ("resnet34", {}, 21_797_672, None),
        ("rednet26", {}, 9_233_166, None),
        ("rednet38", {}, 12_386_986, None),
        ("rednet50", {}, 15_540_806, None),
        ("rednet101", {}, 25_652_950, None),
        ("rednet152", {}, 33_984_582, None),
    ],
)
def test_counts_are_exact(name, options, trainable, total):
    found = counts(name, **options)
    assert found[0] == trainable
    if total is not None:
        assert found[1] == total


@pytest.mark.parametrize(("name", "replaced"), [("resnet18", 11_157_504), ("resnet34", 21_258_240)])
def test_a_global_ring_replaces_all_stage_convolutions(name, replaced):
    """The numbers read off the ring are those of all stage convolutions, 1x1 shortcuts included."""
    with torch.device("meta"):
        net = pc.create_model(f"{name}_ring", size=0.1)
    ring = next(m for m in net.modules() if isinstance(m, RingConv2d)).ring
    assert sum(ring.sizes) == replaced
    assert len(ring.values) == round(0.1 * replaced)
    plain = counts(name)[0]
    assert count_params(net)[0] == plain - replaced + len(ring.values)
    assert isinstance(net.conv1, nn.Conv2d)
    assert isinstance(net.fc, nn.Linear)


def test_macs_of_the_reports_net():
    cost = pc.measure(pc.create_model("resnet32_4stage"), (3, 32, 32))
    assert cost.macs == 75_088_512
    assert cost.depth == 42  # stem, 4 stages of 5 blocks of 2, classifier
