"""Linear layers and convolutions of other dimensions that read a ring: torch's layers in all but the weight."""

import copy

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.export import export
from pocketcnn.methods._reading import READING, fan_out_of
from pocketcnn.methods.ring import METHOD

LAYERS = [
    nn.Linear(6, 8),
    nn.Linear(6, 8, bias=False),
    nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2),
    nn.Conv1d(4, 8, 5, padding="same", dilation=2, padding_mode="circular", bias=False),
    nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)),
    nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False),
]
INPUTS = {nn.Linear: (6,), nn.Conv1d: (4, 11), nn.Conv3d: (2, 3, 5, 6), nn.ConvTranspose1d: (4, 7), nn.ConvTranspose2d: (4, 5, 6), nn.ConvTranspose3d: (2, 3, 3, 3)}  # fmt: skip


def named(layer):
    return repr(layer)


class Sound(nn.Module):
    """A small net for sound: it narrows and widens again, and ends in linear layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 7, padding=3)
        self.down, self.norm = nn.Conv1d(8, 16, 3, stride=2, padding=1), nn.BatchNorm1d(16)
        self.up = nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.down(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.hidden(torch.relu(self.up(x)).mean(2))))


class Decoder(nn.Module):
    """A small decoder of images by transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.one, self.norm = nn.ConvTranspose2d(8, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16)
        self.two, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.out(torch.relu(self.two(torch.relu(self.norm(self.one(torch.relu(self.conv(x))))))))


@pytest.mark.parametrize("layer", LAYERS, ids=named)
@pytest.mark.parametrize("scheme", ["random", "block", "affine", "windows"])
def test_a_layer_is_torchs_with_the_weight_of_the_ring(layer, scheme):
    small = pc.condense(nn.Sequential(layer, nn.ReLU()), "ring", size=0.4, scheme=scheme, include="0")[0]
    assert type(small) is READING[type(layer)]
    x = torch.randn(3, *INPUTS[type(layer)])
    plain = small.dense()
    assert type(plain) is type(layer)
    assert plain.weight.shape == layer.weight.shape
    y = small(x)
    assert y.shape == layer(x).shape
    torch.testing.assert_close(y, plain(x))
    assert small.weight.equal(plain.weight)
    y.square().sum().backward()
    plain(x).square().sum().backward()
    places, signs = small.ring.places(0)
    wanted = torch.zeros_like(small.ring.values).index_add_(0, places.long(), plain.weight.grad.flatten() * signs)
    torch.testing.assert_close(small.ring.values.grad, wanted * small.ring.scales[0], rtol=1e-4, atol=1e-4)
    assert [name for name, _ in small.named_parameters()] == ["bias", "ring.values"][layer.bias is None :]


@pytest.mark.parametrize("window", [3, 9])
def test_windows_take_few_bytes_in_onnx_whatever_the_shape_of_kernels(window, tmp_path):
    """Kernels of three weights and of one: a window runs over several, and the last of a layer is cut off."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [
        nn.Conv1d(*shape, padding="same")
        for shape in ((2, 100, 7), (100, 100, 3), (100, 100, 1), (100, 80, 1), (80, 1, 1))
    ]
    net = pc.condense(
        nn.Sequential(*layers), "ring", size=200, scheme="windows", window=window, gain=True, initialize="fit"
    ).eval()
    codes = sum(-(-layer.weight.numel() // window) for layer in layers[1:4])
    assert len(net[1].ring.codes) == codes
    found = export(net, tmp_path / "net.onnx", format="onnx_compact", input_size=(2, 30), timed=False)
    assert found.max_difference < 1e-5
    assert not found.dense
    stored = (
        4 * sum(p.numel() for p in net.parameters()) + codes * 1.25
    )  # a place below 200 and a sign: 9 bits, 10 in the file
    assert stored < found.size_bytes < stored + 9000 < found.dense_bytes / 3


def test_the_ring_has_the_variance_of_each_layers_fan_out():
    assert [fan_out_of(layer) for layer in LAYERS] == [8, 8, 4 * 3, 8 * 5, 4 * 9, 6 * 4, 3 * 9, 3 * 8]
    torch.manual_seed(0)
    net = pc.condense(
        nn.Sequential(nn.Linear(300, 50), nn.ConvTranspose1d(50, 100, 4)), "ring", size=1.0, include=["0", "1"]
    )
    assert float(net[0].weight.detach().std()) == pytest.approx((2 / 50) ** 0.5, rel=0.05)
    assert float(net[1].weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.05)


def test_linear_layers_are_condensed_only_if_a_pattern_names_nothing_else():
    assert pc.plan(Sound(), "ring").replaced == ["down", "up"]
    assert [row.name for row in pc.plan(Sound(), "ring").rows] == ["stem", "down", "up"]
    assert pc.plan(Sound(), "ring", include="*").replaced == ["stem", "down", "up"]
    named = pc.plan(Sound(), "ring", include=["down", "h*"])
    assert named.replaced == ["down", "hidden", "head"]
    assert named.rows[-1].layer == "linear, 32 -> 3"
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    assert pc.plan(net, "ring", include=["1", "3"], exclude="1").replaced == ["3"]


@pytest.mark.parametrize("scheme", ["random", "windows"])
def test_a_net_for_sound_from_plan_to_export(scheme, tmp_path):
    torch.manual_seed(0)
    trained = Sound().eval()
    options = {"size": 0.9 if scheme == "windows" else 1.0, "scheme": scheme, "include": ["down", "up", "hidden"]}
    plan = pc.plan(trained, "ring", input_size=(2, 16), **options)
    assert plan.after.macs == plan.before.macs
    small = pc.condense(trained, "ring", initialize="fit", images=torch.randn(64, 2, 16), **options).eval()
    x = torch.randn(5, 2, 16)
    error = float(((small(x) - trained(x)).square().mean() / trained(x).var()).detach())
    assert error < (0.2 if scheme == "windows" else 1.2)
    pc.save(small, tmp_path / "sound.safetensors", storage="int8")
    again = pc.load(tmp_path / "sound.safetensors", base=Sound())
    found = export(again, tmp_path / "sound.onnx", format="onnx_compact", input_size=(2, 16), timed=False)
    assert found.max_difference < 1e-4
    assert pc.materialize(again)(x).allclose(again(x), atol=1e-5)
    assert pc.measure(small, (2, 16)).generated_params == sum(p.numel() for p in Sound().parameters())


def test_a_decoder_from_plan_to_export(tmp_path):
    torch.manual_seed(0)
    small = pc.condense(Decoder(), "ring", size=0.3).eval()
    assert [type(m).__name__ for m in (small.one, small.two)] == ["RingConvTranspose2d", "RingConvTranspose2d"]
    pc.save(small, tmp_path / "decoder.safetensors")
    again = pc.load(tmp_path / "decoder.safetensors", base=Decoder())
    x = torch.randn(2, 3, 16, 16)
    assert again(x).equal(small(x))
    for kind in ("onnx", "onnx_compact"):
        assert (
            export(again, tmp_path / "d.onnx", format=kind, input_size=(3, 16, 16), timed=False).max_difference < 1e-4
        )


def test_copies_traces_and_modes():
    net = pc.condense(Sound(), "ring", size=0.5, include=["down", "hidden"]).eval()
    x = torch.randn(2, 2, 16)
    assert copy.deepcopy(net)(x).equal(net(x))
    assert torch.fx.symbolic_trace(net)(x).allclose(net(x))
    net.load_state_dict(net.state_dict())
    assert "hidden.weight" not in net.state_dict()
    assert METHOD.sites(net, METHOD.options())[1].reason == "already condensed by 'ring'"
    frozen = Sound()
    frozen.hidden.weight.requires_grad_(False)
    assert not pc.condense(frozen, "ring", include="hidden").hidden.ring.values.requires_grad
