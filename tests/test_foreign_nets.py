"""Surgery on nets of other libraries; these tests run where timm and torchvision are installed."""

import importlib.util

import pytest
import torch

import pocketcnn as pc


@pytest.fixture(scope="module")
def timm():
    if not importlib.util.find_spec("timm") or not importlib.util.find_spec("torchvision"):
        pytest.skip("timm and torchvision are not installed")
    # Builds of torchvision that miss their compiled part fail on import for want of these two schemas.
    library = torch.library.Library("torchvision", "DEF")
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    import timm

    return timm


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("wide_resnet50_2", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("mobilenetv3_large_100", ["blocks.2.1", "blocks.3.2", "blocks.5.1"]),
        ("efficientnet_b0", ["blocks.3.1", "blocks.4.1", "blocks.5.1"]),
        ("convnext_atto", ["stages.2.blocks.1"]),
    ],
)
def test_global_layers_in_nets_of_timm(timm, name, replaced, tmp_path):
    net = timm.create_model(name, num_classes=7)
    plan = pc.plan(net, "pde", input_size=(3, 64, 64))
    small = pc.condense(net, "pde").eval()
    x = torch.randn(2, 3, 64, 64)
    assert small(x).shape == (2, 7)
    assert plan.after == pc.measure(small, (3, 64, 64))
    assert set(replaced) <= set(plan.replaced)
    pc.save(small, tmp_path / "small.safetensors")
    again = pc.load(tmp_path / "small.safetensors", base=timm.create_model(name, num_classes=7))
    assert torch.equal(again(x), small(x))


@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_large_100", "convnext_atto"])
def test_puppets_in_nets_of_timm(timm, name, tmp_path):
    net = timm.create_model(name, num_classes=7)
    plan = pc.plan(net, "puppet", input_size=(3, 64, 64))
    small = pc.condense(net, "puppet").eval()
    x = torch.rand(4, 3, 64, 64)
    x[1:3] = x[1:3, :, :1, :1]  # simple images among complex ones
    together = small(x)
    torch.testing.assert_close(together, torch.cat([small(image[None]) for image in x]), rtol=1e-3, atol=1e-4)
    assert plan.after == pc.measure(small, (3, 64, 64))
    assert plan.after.macs_min < plan.after.macs_max
    pc.save(small, tmp_path / "small.safetensors")
    again = pc.load(tmp_path / "small.safetensors", base=timm.create_model(name, num_classes=7))
    assert torch.equal(again.eval()(x), together)
