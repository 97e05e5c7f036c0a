import copy
import hashlib

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.methods.ring import ParameterRing, RingConv2d, RingOptions
from pocketcnn.numerics.ring_index import lengths


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
        (dict(window=0), "from 1 to 64, not 0"),
        (dict(window=65), "from 1 to 64, not 65"),
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


@pytest.mark.parametrize("size", [1.0, 300_000])
def test_a_full_ring_is_the_plain_net_in_other_words(size):
    """With N >= M each stored number is read once at most: any plain net can be written on the ring, and takes the same
    steps of gradient descent where all layers have the ring's variance."""
    plain = pc.create_model("resnet20", width=0.5).double()
    full = pc.condense(plain, "ring", size=size)
    layers = {name: m for name, m in full.named_modules() if isinstance(m, RingConv2d)}
    ring = next(iter(layers.values())).ring
    assert len(ring.indices.unique()) == len(ring.indices)
    with torch.no_grad():
        for name, layer in layers.items():
            window = ring.window(layer.slot)
            scaled = plain.get_submodule(name).weight.flatten() / ring.scales[layer.slot] * ring.signs[window]
            ring.values[ring.indices[window].long()] = scaled
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(full(x), plain(x), rtol=1e-10, atol=1e-10)
    for net in (full, plain):
        net(x).square().sum().backward()
    for name, layer in layers.items():
        window = ring.window(layer.slot)
        grad = ring.values.grad[ring.indices[window].long()] * ring.signs[window] / ring.scales[layer.slot]
        torch.testing.assert_close(grad, plain.get_submodule(name).weight.grad.flatten(), rtol=1e-8, atol=1e-10)


def rings_of(net):
    """Rings of a net, and the names of the layers that read each."""
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, RingConv2d):
            found.setdefault(module.ring, []).append(name)
    return found


def test_levels_divide_the_layers_among_rings():
    net = pc.create_model("resnet20")
    assert len(rings_of(pc.condense(net, "ring"))) == 1
    stages = rings_of(pc.condense(net, "ring", level="stage", size=0.1))
    assert [{name.split(".")[0] for name in names} for names in stages.values()] == [{"layer1"}, {"layer2"}, {"layer3"}]
    assert [len(ring.values) for ring in stages] == [1382, 5120, 20480]  # a tenth of 13,824, 51,200 and 204,800
    blocks = rings_of(pc.condense(net, "ring", level="block"))
    assert [{name.rsplit(".", 2)[0] if "downsample" in name else name.rsplit(".", 1)[0] for name in names}
            for names in blocks.values()] == [{f"layer{s}.{b}"} for s in (1, 2, 3) for b in (0, 1, 2)]  # fmt: skip
    assert any("layer2.0.downsample.0" in names for names in blocks.values())


def test_rings_by_pattern():
    net = pc.create_model("resnet20")
    level, size = {"layer1": "early", "layer[23].*": "late"}, {"early": 0.5, "late": 100}
    made = pc.condense(net, "ring", level=level, size=size, include=["layer1", "layer2"])
    found = rings_of(made)
    assert [len(ring.values) for ring in found] == [6912, 100]
    assert all(name.startswith("layer2") for name in list(found.values())[1])
    partly = pc.plan(net, "ring", level={"layer3": "only"})
    assert {row.reason for row in partly.rows if row.name.startswith("layer1")} == {"no pattern of level matches it"}


def test_an_integer_is_divided_among_the_rings():
    sizes = {"a": 30, "b": 70, "c": 1}
    assert lengths(10, sizes) == {"a": 3, "b": 6, "c": 1}
    for total in (3, 4, 50, 101, 1000):
        found = lengths(total, sizes)
        assert sum(found.values()) == total
        assert min(found.values()) >= 1
    assert (
        sum(
            len(ring.values)
            for ring in rings_of(pc.condense(pc.create_model("resnet20"), "ring", size=1000, level="block"))
        )
        == 1000
    )


def test_repeated_sub_networks_read_the_whole_ring_in_their_own_way():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), *(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()) for _ in range(3)), nn.Conv2d(8, 2, 1)
    )
    one = 8 * 8 * 9
    reuse = pc.condense(net, "ring", include="[123].*", subnets="[123]", size=one, scheme="identity")
    kernels = [reuse[stage][0].dense_weight() for stage in (1, 2, 3)]
    assert torch.equal(kernels[0], kernels[1])
    assert torch.equal(kernels[0], kernels[2])
    shared = pc.condense(net, "ring", include="[123].*", subnets="[123]", size=one)
    ring = shared[1][0].ring
    for stage in (1, 2, 3):
        assert torch.equal(ring.indices[ring.window(stage - 1)].sort().values, torch.arange(one).int())
    kernels = [shared[stage][0].dense_weight().detach() for stage in (1, 2, 3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(torch.corrcoef(torch.stack([kernels[a].flatten(), kernels[b].flatten()]))[0, 1])) < 0.15
    assert torch.equal(kernels[0].abs().flatten().sort().values, kernels[1].abs().flatten().sort().values)


def test_an_affine_ring_is_exported_without_tables(unchecked_shapes):
    """The exported program computes places and signs; no more numbers are in it than the net stores."""
    net = pc.condense(
        pc.create_model("resnet20", width=0.5), "ring", size=0.1, scheme="affine", subnets="layer?"
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-5, atol=1e-5)
    used = {spec.arg.name for spec in program.graph_signature.input_specs}
    nodes = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    tables = [node for node in nodes & used if "indices" in node or "signs" in node]
    assert not tables
    small = [
        tensor.numel() for name, tensor in program.constants.items() if "indices" not in name and "signs" not in name
    ]
    assert max(small, default=0) <= 16  # the steps around the ring


@pytest.mark.parametrize("scheme", ["block", "affine", "identity"])
def test_schemes_travel_in_files(scheme, tmp_path):
    net = pc.condense(pc.create_model("resnet20", width=0.5), "ring", scheme=scheme, level="stage", seed=5).eval()
    pc.save(net, tmp_path / "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(pc.load(tmp_path / "net")(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(level={"layer9": "a"}),
            "level: pattern 'layer9' matches nothing that could be replaced; there are conv1, layer1",
        ),
        (dict(level={"layer1": "a", "layer1.0": "b"}), "layer1.0.conv1 matches both 'layer1' and 'layer1.0'"),
        (dict(level="galaxy"), "no level 'galaxy'; known: net, stage, block, or rings by pattern"),
        (dict(level={}), "level names no ring at all"),
        (dict(level=3), "level must be str or a mapping of str to str, not 3"),
        (dict(subnets="stages.*"), "subnets: pattern 'stages.\\*' matches no module with convolutions"),
        (dict(size=2, level="stage"), "2 parameters are too few for 3 rings"),
        (dict(size={"early": 3}), "size gives lengths for early, but the rings are net"),
        (dict(size={"net": 0}), "size as a length must be at least 1, not 0"),
        (dict(size={}), "size names no ring at all"),
    ],
)
def test_rings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        pc.condense(pc.create_model("resnet20"), "ring", **options)


def test_blocks_side_by_side_are_one_stage():
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Flatten(), nn.LazyLinear(2))
    assert len(rings_of(pc.condense(net, "ring", level="stage"))) == 1
    assert len(rings_of(pc.condense(net, "ring", level="block"))) == 2


def test_a_ring_that_no_sub_network_reads_to_its_end_is_said(caplog):
    ring = ParameterRing([(4, 4, 3, 3)] * 2, size=200, subnets=[0, 1])
    assert "a ring of 200 parameters, but no sub-network reads more than 144 of them" in caplog.text
    assert len(ring.indices) == 288
    with pytest.raises(ValueError, match="2 layers need as many sub-network numbers, got 1"):
        ParameterRing([(4, 4, 3, 3)] * 2, subnets=[0])


def test_windows_of_zeros_and_of_rings_too_long():
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, bias=False) for _ in range(5)))
    nn.init.zeros_(net[2].weight)
    fitted = pc.condense(net, "ring", initialize="fit", scheme="windows", size=60)
    assert (fitted[2].dense_weight() == 0).all()
    left = (fitted[1].dense_weight() - net[1].weight).square().sum() / net[1].weight.square().sum()
    assert left.item() < 0.6
    with pytest.raises(
        ValueError, match="codes of windows reach 294,912 parameters of a ring, this one would have 300,000"
    ):
        ParameterRing([(4, 4, 3, 3)], size=300_000, scheme="windows")
    with pytest.raises(ValueError, match="codes of windows reach 98,304 parameters"):
        ParameterRing([(4, 4, 3, 3)], size=100_000, scheme="windows", window=3)


def test_a_codebook_fits_worse_than_windows_that_overlap_and_takes_fewer_bits(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(5))).eval()
    left, sizes = {}, {}
    for scheme in ("windows", "codebook"):
        fitted = pc.condense(net, "ring", initialize="fit", scheme=scheme, size=180).eval()
        left[scheme] = (fitted[1].dense_weight() - net[1].weight).square().sum().item()
        places, _ = fitted[1].ring.places(0)
        assert scheme == "windows" or (places[::9] % 9 == 0).all()
        path = tmp_path / "net.safetensors"
        sizes[scheme] = pc.save(fitted, path, packed=True)
        x = torch.randn(2, 8, 13, 13)
        assert pc.load(path, base=net)(x).equal(fitted(x))
    assert left["windows"] < left["codebook"]
    assert sizes["codebook"] < sizes["windows"] - 50


def test_short_windows_come_nearer_and_long_ones_take_fewer_bytes(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(4)))
    left, codes = {}, {}
    for window in (3, 9, 18):
        fitted = pc.condense(net, "ring", initialize="fit", scheme="windows", size=120, window=window).eval()
        left[window] = (fitted[1].dense_weight() - net[1].weight).square().sum().item()
        codes[window] = fitted[1].ring.codes.numel()
        path = tmp_path / f"{window}.safetensors"
        pc.save(fitted, path)
        again, x = pc.load(path, base=net), torch.randn(2, 8, 11, 11)
        assert again[1].ring.span == window
        assert again(x).equal(fitted(x))
    assert left[3] < left[9] < left[18]
    assert codes == {3: 2 * 2 * 192, 9: 2 * 2 * 64, 18: 2 * 2 * 32}


def test_codes_of_windows_are_stored_and_places_follow_them(tmp_path):
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", width=0.25), "ring", size=0.2, scheme="windows", gain=True)
    ring = net.layer1[0].conv1.ring
    ring.codes.copy_(torch.randint(0, 256, ring.codes.shape, dtype=torch.uint8))
    nn.init.uniform_(ring.gains, 0.5, 2)
    pc.save(net, tmp_path / "net.safetensors")
    again = pc.load(tmp_path / "net.safetensors")
    for slot, shape in enumerate(ring.shapes):
        indices, signs = ring.places(slot)
        expected = ring.gains[slot] * ring.scales[slot] * (ring.values[indices] * signs).view(shape)
        torch.testing.assert_close(ring.read(slot), expected)
        assert torch.equal(again.layer1[0].conv1.ring.read(slot), ring.read(slot))
        assert ring.scale_of(slot) == pytest.approx(ring.scales[slot] * ring.gains[slot].item())
