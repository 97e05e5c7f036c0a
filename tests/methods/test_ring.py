import copy
import hashlib

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.methods.ring import ParameterRing, RingConv2d, RingOptions


def test_kernel_equals_reading_number_by_number():
    ring = ParameterRing([(4, 3, 3, 3), (2, 4, 1, 1)], size=20, seed=3, dtype=torch.float64)
    start = 0
    for slot, shape in enumerate(ring.shapes):
        expected = torch.empty(shape, dtype=torch.float64)
        for number in range(expected.numel()):
            place, sign = int(ring.indices[start + number]), int(ring.signs[start + number])
            expected.view(-1)[number] = sign * ring.values[place] * ring.scales[slot]
        torch.testing.assert_close(ring.read(slot), expected, rtol=1e-15, atol=0)
        start += expected.numel()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # nn.Conv2d's, about its own padding
@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(1, 3), padding="same", dilation=2),
        dict(kernel_size=(2, 3), padding="same"),
        dict(kernel_size=3, padding=1, groups=4, bias=False),
        dict(kernel_size=3, padding=(2, 1), padding_mode="reflect"),
    ],
)
def test_layer_equals_a_convolution_with_its_dense_weight(arguments):
    layer = RingConv2d(8, 12, **arguments, size=0.3, dtype=torch.float64)
    conv = nn.Conv2d(8, 12, **arguments, dtype=torch.float64)
    conv.weight.data = layer.dense_weight().detach()
    if conv.bias is not None:
        conv.bias.data = layer.bias.detach()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)


def test_each_layer_starts_at_its_own_fan_out_variance():
    shapes, groups = [(64, 32, 3, 3), (256, 64, 1, 1), (64, 1, 3, 3)], [1, 1, 64]
    ring = ParameterRing(shapes, size=1.0, groups=groups)
    for slot, (shape, g) in enumerate(zip(shapes, groups, strict=True)):
        wanted = 2 / (shape[0] // g * shape[2] * shape[3])
        assert float(ring.read(slot).detach().var()) == pytest.approx(wanted, rel=0.15)  # 576 draws in the smallest


def test_full_ring_starts_like_the_plain_net():
    """With as many stored numbers as used ones, the ring's kernels have the plain net's variance, layer by layer."""
    plain = pc.create_model("resnet20")
    full = pc.condense(plain, "ring", size=1.0)
    for (name, conv), layer in zip(
        [(n, m) for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)][1:],
        [m for m in full.modules() if isinstance(m, RingConv2d)],
        strict=True,
    ):
        assert float(layer.dense_weight().detach().std()) == pytest.approx(
            float(conv.weight.detach().std()), rel=0.15
        ), name


@pytest.mark.parametrize("size", [1, 2, 1000, 500_000])
def test_any_ring_size_works(size):
    net = pc.condense(pc.create_model("resnet20"), "ring", size=size).eval()
    assert torch.isfinite(net(torch.randn(1, 3, 16, 16))).all()
    assert sum(p.numel() for n, p in net.named_parameters() if n.endswith("ring.values")) == size


def test_one_ring_serves_all_layers_and_its_gradient_is_the_sum():
    net = pc.condense(pc.create_model("resnet20"), "ring", size=0.1)
    rings = {id(m.ring) for m in net.modules() if isinstance(m, RingConv2d)}
    assert len(rings) == 1
    twin = copy.deepcopy(net)
    layers = [m for m in twin.modules() if isinstance(m, RingConv2d)]
    assert len({id(m.ring.values) for m in layers}) == 1, "deepcopy keeps the ring shared"
    dense = pc.materialize(net)
    x = torch.randn(4, 3, 16, 16)
    net(x).square().sum().backward()
    dense(x).square().sum().backward()
    ring = layers[0].ring
    expected, start = torch.zeros_like(ring.values), 0
    convs = [m for m in dense.modules() if isinstance(m, nn.Conv2d)][1:]
    for slot, conv in enumerate(convs):
        n = conv.weight.numel()
        uses = conv.weight.grad.flatten() * ring.signs[start : start + n] * ring.scales[slot]
        expected.index_add_(0, ring.indices[start : start + n].long(), uses)
        start += n
    torch.testing.assert_close(next(m for m in net.modules() if isinstance(m, RingConv2d)).ring.values.grad, expected,
                               rtol=1e-3, atol=1e-4)  # fmt: skip


@pytest.mark.golden
def test_a_net_is_rebuilt_for_ever(golden):
    net = pc.condense(pc.create_model("resnet20"), "ring", size=0.1, seed=42)
    ring = next(m for m in net.modules() if isinstance(m, RingConv2d)).ring
    ring.values.data = torch.arange(len(ring.values), dtype=torch.float32)
    content = b"".join(ring.read(slot).detach().numpy().tobytes() for slot in range(len(ring.shapes)))
    golden("ring_net.txt", hashlib.sha256(content).hexdigest() + "\n")


def test_meta_device_then_to_empty_then_reset_gives_a_whole_net():
    with torch.device("meta"):
        net = RingConv2d(4, 4, 3, size=0.5)
    net = net.to_empty(device="cpu")
    net.reset_parameters()
    fresh = RingConv2d(4, 4, 3, size=0.5)
    assert torch.equal(net.ring.indices, fresh.ring.indices)
    assert torch.isfinite(net(torch.randn(1, 4, 5, 5))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=0.0), "must lie in"),
        (dict(size=1.5), "must lie in"),
        (dict(size=0), "at least 1"),
        (dict(seed=-1), "seed must lie in"),
        (dict(scheme="spiral"), "no ring scheme 'spiral'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RingOptions(**options)


def test_slot_of_another_shape_is_refused():
    ring = ParameterRing([(4, 4, 3, 3)], size=10)
    with pytest.raises(ValueError, match=r"slot 0 of the ring holds \(4, 4, 3, 3\), this layer reads \(8, 4, 3, 3\)"):
        RingConv2d(4, 8, 3, ring=ring)
    with pytest.raises(ValueError, match="none of its 1 slots"):
        RingConv2d(4, 4, 3, ring=ring, slot=1)
