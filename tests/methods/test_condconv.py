import copy

import pytest
import torch
from torch import nn

import oracles
import pocketcnn as pc
from pocketcnn.errors import NotEnoughMemory
from pocketcnn.methods.condconv import CondConv2d, CondConvOptions, Router
from pocketcnn.numerics.condconv import COMPUTATIONS


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(1, 3), padding=(0, 1), bias=False),
        dict(kernel_size=3, padding=2, dilation=2, groups=2),
    ],
)
def test_layer_equals_mixing_the_experts_outputs(arguments):
    layer = CondConv2d(4, 6, **arguments, num_experts=3, dtype=torch.float64)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    weights = torch.sigmoid(x.mean((2, 3)) @ layer.router.weight.T + layer.router.bias)
    expected = oracles.condconv2d(
        x, weights, layer.experts.view(3, *layer.weight_shape), layer.bias, layer.stride,
        layer.padding, layer.dilation, layer.groups,
    )  # fmt: skip
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_dense_weight_is_each_images_kernel():
    layer = CondConv2d(4, 6, 3, padding=1, bias=False)
    x = torch.randn(3, 4, 7, 6)
    weight = layer.dense_weight(x)
    assert weight.shape == (3, 6, 4, 3, 3)
    for image, kernel, y in zip(x, weight, layer(x), strict=True):
        torch.testing.assert_close(nn.functional.conv2d(image[None], kernel, padding=1)[0], y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs x: its kernel is mixed anew for every image"):
        layer.dense_weight()


def test_an_image_does_not_see_the_others():
    layer = CondConv2d(4, 6, 3, padding=1, dtype=torch.float64)
    x = torch.randn(37, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[5:6], layer(x[5:6]), rtol=1e-12, atol=1e-12)


def test_each_expert_is_initialised_as_a_layer_of_its_own():
    layer = CondConv2d(64, 128, 3, num_experts=4)
    for expert in layer.experts:
        assert float(expert.detach().var()) == pytest.approx(2 / (128 * 9), rel=0.03)
    x = torch.zeros(1, 64, 5, 5)  # routing is exactly 1/2, so the mixed variance is num_experts / 4 of a plain layer's
    assert float(layer.dense_weight(x).detach().var()) == pytest.approx(4 / 4 * 2 / (128 * 9), rel=0.03)


def test_batch_of_none():
    assert CondConv2d(4, 6, 3, stride=2)(torch.empty(0, 4, 7, 7)).shape == (0, 6, 3, 3)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="num_experts must be at least 1, not 0"):
        CondConvOptions(0)
    with pytest.raises(ValueError, match="num_experts"):
        CondConv2d(4, 4, 3, num_experts=0)


@pytest.mark.parametrize("batch", [1, 37])
@pytest.mark.parametrize(
    "arguments",
    [
        dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1),
        dict(in_channels=4, out_channels=6, kernel_size=1, bias=False),  # pointwise
        dict(in_channels=6, out_channels=6, kernel_size=3, padding=1, groups=6),  # depthwise
        dict(in_channels=6, out_channels=12, kernel_size=(1, 3), padding=(0, 2), dilation=2, groups=3),
    ],
    ids=["strided", "pointwise", "depthwise", "grouped"],
)
def test_all_computations_are_equal_forward_and_backward(arguments, batch):
    torch.manual_seed(0)
    layer = CondConv2d(**arguments, num_experts=3, dtype=torch.float64)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(batch, arguments["in_channels"], 7, 6, dtype=torch.float64, requires_grad=True)
    found = {}
    for computation in COMPUTATIONS:
        layer.computation = computation
        y = layer(x)
        names = [name for name, _ in layer.named_parameters()]
        grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found[computation] = dict(zip(["y", "x", *names], [y.detach(), *grads], strict=True))
    experts = layer.experts.view(3, *layer.weight_shape)
    slow = oracles.condconv2d(
        x.detach(),
        layer.routing_weights(x.detach()),
        experts,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    torch.testing.assert_close(found["unfold"]["y"], slow.detach(), rtol=1e-12, atol=1e-12)
    for computation in COMPUTATIONS:
        for name, wanted in found["unfold"].items():
            torch.testing.assert_close(
                found[computation][name], wanted, rtol=1e-10, atol=1e-10, msg=f"{computation} {name}"
            )


@pytest.mark.parametrize("options", [dict(computation=c) for c in COMPUTATIONS] + [dict(routing="block")], ids=str)
def test_nets_are_exported_with_a_dynamic_batch(options, unchecked_shapes):
    net = pc.condense(pc.create_model("resnet20", width=0.25), "condconv", **options).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 37):
        x = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)


def test_layers_of_a_block_share_the_routing_of_the_first():
    net = pc.condense(pc.create_model("resnet20", width=0.5), "condconv", routing="block", num_experts=3)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, CondConv2d)}
    routers = {}
    for name, layer in layers.items():
        routers.setdefault(layer.router, []).append(name)
    assert len(routers) == 9
    assert ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"] in routers.values()
    assert all(layer.router_shared for layer in layers.values())
    seen = {}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda m, args, y, name=name: seen.__setitem__(name, (args[0], m.routing_weights(args[0])))
        )
    net(torch.randn(5, 3, 8, 8))
    first, weights = seen["layer2.0.conv1"]  # what the block is given goes to its first layer
    router = layers["layer2.0.conv1"].router
    assert torch.equal(weights, torch.sigmoid(first.mean((2, 3)) @ router.weight.T + router.bias))
    assert torch.equal(seen["layer2.0.conv2"][1], weights)
    assert torch.equal(seen["layer2.0.downsample.0"][1], weights)
    with pytest.raises(RuntimeError, match=r"takes its routing from its block, layer1\.0, and works only while"):
        pc.condense(pc.create_model("resnet20"), "condconv", routing="block").layer1[0].conv2(torch.randn(1, 16, 4, 4))


class ByKeyword(nn.Module):
    """Calls its block with names, its images last."""

    def __init__(self):
        super().__init__()
        self.block = Scaled()

    def forward(self, x, named=True):
        return self.block(scale=2.0, images=x) if named else self.block(x, 2.0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images, scale):
        return self.conv2(self.conv1(images * scale)) if isinstance(images, torch.Tensor) else self.conv2(images[0])


def test_a_block_may_be_called_by_keyword_but_not_without_images():
    net = pc.condense(ByKeyword(), "condconv", routing="block", include="block.*").eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(net(x), net(x, named=False))
    assert torch.equal(net.block(images=x, scale=2 * x[:1]), net.block(scale=2 * x[:1], images=x))
    with pytest.raises(ValueError, match=r"routing='block': block is given no images, .* routing='layer'"):
        net.block([x], 1.0)


def test_shared_routing_survives_copies_files_pickles_and_the_compiler(tmp_path, unchecked_shapes):
    net = pc.condense(pc.create_model("resnet20", width=0.25), "condconv", routing="block", num_experts=2).eval()
    batches = [torch.randn(3, 3, 8, 8) for _ in range(3)]
    expected = [net(x) for x in batches]
    pc.save(net, tmp_path / "net")
    torch.save(net, tmp_path / "pickled")
    others = {
        "copy": copy.deepcopy(net),
        "file": pc.load(tmp_path / "net"),
        "pickle": torch.load(tmp_path / "pickled", weights_only=False),
    }
    for name, other in others.items():
        mine = {id(m) for m in net.modules()}
        assert not mine & {id(m) for m in other.modules()}
        for x, y in zip(batches, expected, strict=True):
            assert torch.equal(other(x), y), name
    for part in (net.layer2[0].conv1, net.layer2[0].conv2):  # one after the other: a compiled layer in an eager block
        part.compile(backend="eager")
        for x, y in zip(batches, expected, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    whole = torch.compile(others["copy"], backend="eager")
    for x, y in zip(batches, expected, strict=True):
        torch.testing.assert_close(whole(x), y, rtol=1e-4, atol=1e-5)


def test_a_router_is_given_and_stays_as_it_is():
    router = Router(4, 3, "softmax")
    before = router.weight.detach().clone()
    layer = CondConv2d(4, 4, 3, num_experts=3, router=router)
    assert torch.equal(router.weight, before)
    layer.reset_parameters()
    assert torch.equal(router.weight, before)


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_under_autocast_and_with_no_images(computation):
    layer = CondConv2d(4, 6, 3, padding=1, num_experts=3, computation=computation)
    x = torch.randn(5, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    nothing = layer(torch.empty(0, 4, 6, 6))
    assert nothing.shape == (0, 6, 6, 6)
    nothing.sum().backward()


def test_softmax_with_temperature_and_dropout():
    router = Router(4, 3, "softmax", temperature=2.0, dropout=0.5)
    x = torch.randn(200, 4, 2, 2)
    router.eval()
    expected = ((x.mean((2, 3)) @ router.weight.T + router.bias) / 2).softmax(1)
    torch.testing.assert_close(router(x), expected)
    router.train()
    torch.manual_seed(0)
    drawn = router(x)
    kept = drawn != 0
    assert 0.4 < float(kept.float().mean()) < 0.6
    torch.testing.assert_close(drawn[kept], 2 * expected[kept])


def test_only_the_last_layers():
    net = pc.create_model("resnet20")
    half = pc.plan(net, "condconv", last=0.25)
    chosen = [row.name for row in half.rows if row.becomes not in ("", "-")]
    assert chosen == ["layer3.0.downsample.0", "layer3.1.conv1", "layer3.1.conv2", "layer3.2.conv1", "layer3.2.conv2"]
    assert {row.reason for row in half.rows if row.name.startswith("layer1")} == {
        "not among the last 25 % of the layers"
    }


def test_memory_is_estimated_before_it_is_taken():
    with pytest.raises(NotEnoughMemory, match=r"1,000,000,000 experts take .* GB, cpu has .* [\d,]+ would fit"):
        pc.condense(pc.create_model("resnet20"), "condconv", num_experts=10**9)
    with pytest.raises(NotEnoughMemory, match="experts take"):
        CondConv2d(64, 64, 3, num_experts=10**9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(last=0.0), r"last is a share of the layers, in \(0, 1\], not 0.0"),
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\), not 1.0"),
        (dict(temperature=2.0), "a temperature belongs to activation='softmax', not 'sigmoid'"),
        (dict(activation="softmax", temperature=0.0), "temperature must be a positive number, not 0.0"),
        (dict(routing="stage"), "no routing 'stage'; known: layer, block"),
        (dict(computation="fft"), "no computation 'fft'; known: auto, mix_kernels, mix_outputs, unfold"),
    ],
)
def test_options_that_make_no_sense(options, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        CondConvOptions(**options)
    with pytest.raises(ValueError, match="the router weighs 3 experts, this layer has 4"):
        CondConv2d(4, 4, 3, router=Router(4, 3))
