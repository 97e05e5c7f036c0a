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
        ("mnist_net", {"feature": "conv"}, 522, 526),
        ("mnist_net", {"feature": "residual"}, 524, 530),
        ("mnist_net", {"feature": "pde"}, 524, 530),
        ("mnist_net", {"feature": "conv", "width": 8}, 4_596, 4_614),
        ("mnist_net", {"feature": "residual", "width": 8}, 4_612, 4_646),
        ("mnist_net", {"feature": "pde", "width": 8, "diffusivity": "perona_malik"}, 4_612, 4_646),
        ("resnet32_global", {}, 161_402, 163_578),
        ("resnet32_global", {"velocity": "identity", "diffusivity": "constant"}, 156_922, 158_650),
        ("resnet32_global_identity", {}, 156_922, 158_650),
        ("resnet32_global_residual", {}, 546_234, 550_202),
        ("resnet32_global_perona_malik", {}, 158_938, 160_666),
        ("resnet32_global_initial", {}, 258_618, 261_242),
        ("resnet32_global_diffusion", {}, 158_938, 160_666),
        ("resnet32_global_advection", {}, 158_938, 160_666),
        ("resnet32_global", {"bias": True}, 161_850, None),
        ("resnet32_global", {"bias": True, "num_classes": 100}, 167_700, None),
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
    plain = pc.measure(pc.create_model("resnet32_4stage"), (3, 32, 32))
    assert plain.macs == 75_088_512
    assert plain.depth == 42  # stem, 4 stages of 5 blocks of 2, classifier
    small = pc.measure(pc.create_model("resnet32_global"), (3, 32, 32))
    assert small.macs_by_operator["convolution"] + small.macs_by_operator["addmm"] == 14_779_008
    # 16 x 32 x 32, 32 x 16 x 16 and 64 x 8 x 8 numbers; 5 steps of 6, and 9 to make the weights.
    assert small.macs_by_operator["advect_diffuse"] == (16_384 + 8_192 + 4_096) * (5 * 6 + 9)
    assert small.depth == 13  # stem, 4 blocks of 2, 3 layers whose coefficients take one convolution each, classifier
    condensed = pc.condense(pc.create_model("resnet32_4stage"), "pde", last_stage="drop")
    assert pc.measure(condensed, (3, 32, 32)) == small
