import dataclasses
import html

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import NothingToCondense, UnknownMethod, UnsupportedLayer
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.involution import Involution2d
from pocketcnn.methods.ring import RingConv2d


def replaced(net, kind):
    return [name for name, module in net.named_modules() if isinstance(module, kind)]


def test_default_sites_of_the_ring_are_all_but_the_stem():
    net = pc.condense(pc.create_model("resnet18", num_classes=10), "ring")
    assert len(replaced(net, RingConv2d)) == 19
    assert type(net.conv1) is nn.Conv2d


def test_default_sites_of_involution_leave_a_convolution_between():
    basic = pc.condense(pc.create_model("resnet20"), "involution")
    assert replaced(basic, Involution2d) == [f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in range(3)]
    bottleneck = pc.condense(pc.create_model("resnet26"), "involution")
    assert all(name.endswith("conv2") for name in replaced(bottleneck, Involution2d))
    chain = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5)), nn.Flatten(), nn.LazyLinear(3))
    assert replaced(pc.condense(chain, "involution"), Involution2d) == ["2", "4"]


def test_include_exclude_where():
    net = pc.create_model("resnet20")
    assert replaced(pc.condense(net, "ring", include="layer3"), RingConv2d)[0] == "layer3.0.conv1"
    names = replaced(pc.condense(net, "ring", include=["layer1.*", "conv1"], exclude="*.conv2"), RingConv2d)
    assert names == ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"], (
        "include overrides the stem's default"
    )
    wide = pc.condense(net, "condconv", where=lambda module, name: module.out_channels == 64)
    assert all(wide.get_submodule(name).out_channels == 64 for name in replaced(wide, CondConv2d))
    assert len(replaced(wide, CondConv2d)) == 7
    with pytest.raises(ValueError, match=r"include pattern 'layer9\.\*' matches no convolution; there are conv1"):
        pc.condense(net, "ring", include="layer9.*")


def test_methods_one_after_the_other():
    net = pc.condense(pc.create_model("resnet20"), "involution", include="layer1")
    net = pc.condense(net, "condconv", include="layer3", num_experts=2)
    net = pc.condense(net, "ring")
    kinds = {
        kind: {name.split(".")[0] for name in replaced(net, kind)} for kind in (Involution2d, CondConv2d, RingConv2d)
    }
    assert kinds == {Involution2d: {"layer1"}, CondConv2d: {"layer3"}, RingConv2d: {"layer2"}}
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert not [n for n, m in net.named_modules() if isinstance(m, RingConv2d) and "generator" in n]


def test_unsupported_layers_are_skipped_or_named():
    net = pc.create_model("resnet20")
    with pytest.raises(
        UnsupportedLayer, match=r"layer2\.0\.conv1: involution keeps the channel count, but this layer has 16"
    ):
        pc.condense(net, "involution", include="layer2.0.*", on_unsupported="error")
    assert replaced(pc.condense(net, "involution", include="layer2.0.*"), Involution2d) == ["layer2.0.conv2"]
    with pytest.raises(ValueError, match="on_unsupported must be"):
        pc.condense(net, "ring", on_unsupported="explode")


def test_passed_over_layers_say_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3)
            self.tied = nn.Conv2d(16, 16, 3, padding=1)
            self.twin = nn.Conv2d(16, 16, 3, padding=1)
            self.twin.weight = self.tied.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1))
            self.hooked = nn.utils.spectral_norm(nn.Conv2d(16, 16, 3))
            self.again = nn.Conv2d(16, 16, 3)
            self.kernel = self.again.weight
            self.up = nn.ConvTranspose2d(16, 16, 2)
            self.good = nn.Conv2d(16, 16, 3)
            self.head = nn.Conv2d(16, 4, 1)

    reasons = {row.name: row.reason for row in pc.plan(Odd(), "ring").rows}
    assert reasons["stem"].startswith("the stem")
    assert reasons["tied"] == reasons["twin"] == "its weight is shared with another module"
    assert reasons["again"] == "its weight is shared with another module"
    assert reasons["hooked"] == "it has forward hooks, which would be lost"
    assert reasons["normed"] == "a ParametrizedConv2d, not a plain nn.Conv2d"
    assert reasons["up"] == ""
    assert {row.name: row.reason for row in pc.plan(Odd(), "condconv").rows}[
        "up"
    ] == "a ConvTranspose2d, not a plain nn.Conv2d"
    assert reasons["good"] == ""
    assert reasons["head"].startswith("the classifier")


def test_a_layer_that_is_the_whole_net():
    small = pc.condense(nn.Conv2d(4, 4, 3), "ring", include="*")
    assert isinstance(small, RingConv2d)
    dense = pc.materialize(small)
    assert type(dense) is nn.Conv2d
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(dense(x), small(x))


def test_a_ring_over_frozen_and_trained_layers_is_trained():
    net = pc.create_model("resnet20")
    net.layer1.requires_grad_(False)
    assert pc.condense(net, "ring").layer1[0].conv1.ring.values.requires_grad
    net.requires_grad_(False)
    assert not pc.condense(net, "ring").layer1[0].conv1.ring.values.requires_grad


def test_one_ring_refuses_layers_of_two_dtypes():
    net = pc.create_model("resnet20")
    net.layer3.double()
    with pytest.raises(ValueError, match="one ring cannot serve layers of different devices or dtypes"):
        pc.condense(net, "ring")


def test_errors_name_what_is_known():
    net = pc.create_model("resnet20")
    with pytest.raises(UnknownMethod, match=r"no method 'rings'; did you mean 'ring'\? Known: condconv, involution"):
        pc.condense(net, "rings")
    with pytest.raises(ValueError, match="ring has no option 'num_experts'; it belongs to condconv; its options: size"):
        pc.condense(net, "ring", num_experts=3)
    with pytest.raises(ValueError, match="condconv: num_experts must be int, not 'many'"):
        pc.condense(net, "condconv", num_experts="many")
    with pytest.raises(ValueError, match="ring: size as a fraction must lie in"):
        pc.condense(net, "ring", size=2.0)
    with pytest.raises(NothingToCondense, match="it has no convolutions"):
        pc.condense(nn.Linear(3, 3), "ring")
    with pytest.raises(ValueError, match="no initialization 'magic'"):
        pc.condense(net, "ring", initialize="magic")


def test_plan_in_a_notebook():
    """The cells of the text, as HTML that nothing in a name can break, without colours."""
    found = pc.plan(pc.create_model("resnet20"), "ring", include="layer3", input_size=(3, 32, 32))
    rows = (dataclasses.replace(found.rows[0], reason="<b>&"), *found.rows[1:])
    page = dataclasses.replace(found, rows=rows)._repr_html_()
    assert page.count("<tr>") == len(found.rows) + 2, "titles, and what the layers share"
    assert "&lt;b&gt;&amp;</td>" in page
    assert "<b>" not in page
    assert all(html.escape(line) in page for line in found.savings())
    assert "color" not in page
    assert "<style" not in page


@pytest.mark.golden
def test_plan_table(golden):
    net = pc.create_model("resnet20")
    text = "\n\n".join(str(pc.plan(net, method, input_size=(3, 32, 32))) for method in sorted(pc.METHODS))
    golden("plan_resnet20.txt", text + "\n")


def test_materialize_of_a_big_ring_net_is_exact():
    net = pc.create_model("resnet18_ring", num_classes=10, stem="small", size=0.1).eval()
    dense = pc.materialize(net)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dense(x), net(x), rtol=1e-5, atol=1e-5)
    assert pc.measure(dense).trainable_params == 11_173_962


def test_materialized_nets_can_be_saved(tmp_path):
    dense = pc.materialize(pc.create_model("resnet18_ring", num_classes=3, width=0.1)).eval()
    pc.save(dense, tmp_path / "dense.safetensors")
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(pc.load(tmp_path / "dense.safetensors")(x), dense(x))


class Stage(nn.Module):
    """Blocks in a row inside of a module, as timm's stages are."""

    def __init__(self, blocks, conv=nn.Conv2d):
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(conv(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(blocks))
        )

    def forward(self, x):
        return self.blocks(x)


@pytest.mark.parametrize(("method", "sites"), [("pde", ["2.blocks.1"]), ("puppet", ["1", "2.blocks.0"])])
def test_a_stage_of_one_block_beside_a_longer_one(method, sites):
    """The short one is a block itself; the long one's blocks must not be taken twice, inside of it and with it."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Stage(1), Stage(4))
    assert pc.plan(net, method).replaced == sites
    assert pc.condense(net, method)(torch.randn(2, 3, 8, 8)).shape == (2, 4, 8, 8)


def test_kernels_of_subclasses_are_not_generated_and_named():
    class Scaled(nn.Conv2d):
        pass

    (row,) = pc.plan(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *Stage(3, Scaled).blocks), "puppet").rows
    assert row.reason.endswith("no convolutions larger than 1x1 to generate (Scaled is not a plain nn.Conv2d)")


def test_nets_that_read_the_weight_of_a_convolution_find_a_rings():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.conv2d(self.stem(x), self.conv.weight, self.conv.bias).mean((2, 3)))

    small = pc.condense(Reads(), "ring", size=5)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(small(x), pc.materialize(small)(x))
    small(x).sum().backward()
    assert small.conv.ring.values.grad.ne(0).all()


@pytest.mark.parametrize(
    ("net", "reasons"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)),
            {"ring": "it has no convolutions", "pde": "it has no runs of equal blocks of convolutions"},
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), nn.TransformerEncoderLayer(4, 1, 8)),
            {"condconv": "0: the stem: the first layer is left alone", "involution": "0: involution keeps the channel count",
             "puppet": "it has no runs of equal blocks of convolutions in an nn.Sequential"},
        ),
    ],
    ids=["mlp", "patches"],
)  # fmt: skip
def test_a_net_without_a_fitting_place_says_why(net, reasons):
    for method, reason in reasons.items():
        with pytest.raises(NothingToCondense, match=rf"in Sequential \({reason}"):
            pc.condense(net, method)
