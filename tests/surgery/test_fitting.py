"""Starting from trained weights: what is fitted comes near to the trained net, and nothing else moves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.puppet import puppeteers_of
from pocketcnn.methods.ring import RingConv2d
from pocketcnn.surgery import fitting


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(3)
    return F.interpolate(torch.randn(96, 3, 5, 5), size=(16, 16), mode="bilinear")


@pytest.fixture(scope="module")
def trained(images):
    """Not trained, but with statistics and norms of its own, as a trained net has them."""
    torch.manual_seed(1)
    net = pc.create_model("resnet20", width=0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    fitting.recalibrate_(net, images)
    return net.eval()


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(fitting, "STEPS", 30)
    monkeypatch.setattr(fitting, "BATCH", 16)


def apart(net, trained, images):
    with torch.no_grad():
        one, other = net(images), trained(images)
    return float((one - other).square().mean() / other.var())


@pytest.mark.parametrize("method", [*pc.METHODS, "lowrank"])
def test_a_fitted_net_gives_nearly_what_the_trained_one_gives(method, trained, images, tmp_path, lowrank):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    fresh = pc.condense(trained, method)
    fitting.recalibrate_(fresh, images)
    fitted = pc.condense(trained, method, initialize="fit", images=images)
    assert apart(fitted, trained, images) < apart(fresh, trained, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert not any(module.training for module in fitted.modules())
    assert all(p.grad is None and p.requires_grad for p in fitted.parameters())
    assert not any(m._forward_hooks for m in trained.modules())
    pc.save(fitted, tmp_path / "fitted.safetensors")
    assert torch.equal(pc.load(tmp_path / "fitted.safetensors")(images), fitted(images))


def test_experts_mix_to_the_trained_kernel_and_can_learn_to_differ(trained, images):
    fitted = pc.condense(trained, "condconv", initialize="fit", num_experts=3)
    torch.testing.assert_close(fitted(images), trained(images), rtol=1e-4, atol=1e-4)
    layer = next(m for m in fitted.modules() if isinstance(m, CondConv2d))
    assert not torch.equal(layer.experts[0], layer.experts[1])
    fitted(images).square().sum().backward()
    assert float(layer.router.weight.grad.abs().max()) > 0


def test_softmax_experts_and_biases_mix_to_the_trained_ones_too(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    fitted = pc.condense(net, "condconv", initialize="fit", activation="softmax", num_experts=4)
    torch.testing.assert_close(fitted(images), net(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scheme", "size", "most"),
    # Of the energy of two numbers that share a place, half is lost; windows are chosen, and lose less with less.
    [
        ("random", 0.5, 0.75),
        ("block", 0.5, 0.85),
        ("affine", 0.5, 0.75),
        ("identity", 0.5, 0.75),
        ("windows", 0.1, 0.4),
    ],
)
def test_kernels_of_a_fitted_ring_are_near_the_trained_ones(scheme, size, most, trained):
    fitted = pc.condense(trained, "ring", initialize="fit", size=size, scheme=scheme)
    for name, layer in fitted.named_modules():
        if isinstance(layer, RingConv2d):
            weight = trained.get_submodule(name).weight
            assert float((layer.dense_weight() - weight).square().sum() / weight.square().sum()) < most
    assert fitted.provenance.steps[0].options["gain"]


def test_a_ring_as_long_as_what_it_replaces_loses_nothing(trained, images):
    fitted = pc.condense(trained, "ring", initialize="fit", size=1.0)
    torch.testing.assert_close(fitted(images), trained(images), rtol=1e-3, atol=1e-3)


def test_biases_of_convolutions_go_to_the_ring_layers(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    fitted = pc.condense(net, "ring", initialize="fit", size=1.0)
    torch.testing.assert_close(fitted(images), net(images), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_puppeteer_turns_towards_the_trained_kernels(trained):
    def near(net):
        made = puppeteers_of(net)[0].kernels(3)
        wanted = [
            conv.weight
            for stage in (trained.layer1, trained.layer2, trained.layer3)
            for block in stage
            for conv in (block.conv1, block.conv2)
        ]
        pairs = zip(made.values(), wanted, strict=True)
        return sum(float(F.cosine_similarity(m.flatten(), w.flatten(), dim=0)) for m, w in pairs) / len(wanted)

    assert abs(near(pc.condense(trained, "puppet", size=0.3))) < 0.1
    assert near(pc.condense(trained, "puppet", size=0.3, initialize="fit")) > 0.4


@pytest.mark.parametrize("method", ["involution", "puppet"])
def test_of_a_frozen_net_only_what_is_new_is_fitted(method, trained, images):
    net = copy.deepcopy(trained).requires_grad_(False)
    fresh = pc.condense(net, method)
    fitting.recalibrate_(fresh, images)
    fitted = pc.condense(net, method, initialize="fit", images=images)
    assert not any(p.requires_grad for p in fitted.parameters())
    assert all(p.grad is None for p in fitted.parameters())
    assert torch.equal(fitted.fc.weight, trained.fc.weight)
    if method == "involution":
        assert torch.equal(fitted.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)
    assert apart(fitted, trained, images) < apart(fresh, trained, images)


def test_statistics_of_recalibrated_norms_are_those_of_the_images(trained, images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)).eval()
    fitting.recalibrate_(net, images, batch_size=32)
    y = net[0](images)
    torch.testing.assert_close(net[1].running_mean, y.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, y.var(dim=(0, 2, 3)), rtol=0.05, atol=1e-4)
    assert net[1].momentum == 0.3
    assert not net[1].training


def test_norms_that_no_image_reaches_keep_what_they_have(images):
    class Net(nn.Sequential):
        def forward(self, x):
            return self[0](x) if x.isfinite().all() else self[2](x)  # the second norm is never called

    net = Net(nn.BatchNorm2d(3), nn.BatchNorm2d(5), nn.Identity())
    nn.init.constant_(net[1].running_mean, 7)
    net[1].num_batches_tracked.fill_(4)
    fitting.recalibrate_(net, images)
    assert (net[1].running_mean == 7).all()
    assert int(net[1].num_batches_tracked) == 4
    before = net[0].running_mean.clone()
    with pytest.raises(RuntimeError):
        fitting.recalibrate_(net, torch.zeros(4, 2, 8, 8))
    assert torch.equal(net[0].running_mean, before)
    assert net[0].momentum == 0.1


def test_float64_nets_are_fitted_in_float64(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    fitted = pc.condense(net, "ring", initialize="fit", size=1.0)
    torch.testing.assert_close(fitted[2].dense_weight(), net[2].weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="pde", initialize="fit"), "pde is fitted to the outputs of the trained layers: .* needs images="),
        (dict(method="ring", initialize="guess"), "no initialization 'guess'; known: fresh, fit"),
        (dict(method="ring", images=torch.zeros(4, 3, 16, 16)), 'leave images out, or pass initialize="fit"'),
        (
            dict(method="ring", initialize="fit", images=torch.zeros(4, 3, 16, 16, dtype=torch.uint8)),
            "images must be two or more normalised ones in a float tensor",
        ),
        (dict(method="ring", initialize="fit", images=torch.zeros(1, 3, 16, 16)), "images must be two or more"),
        (
            dict(method="ring", initialize="fit", images=torch.full((4, 3, 16, 16), torch.nan)),
            "numbers that are not finite",
        ),
    ],
)
def test_bad_requests(options, message, trained):
    with pytest.raises(ValueError, match=message):
        pc.condense(trained, **options)


def test_a_stage_of_several_outputs_is_matched_in_all(images):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 3, padding=1)
            self.mix = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            return self.mix(self.conv(x)), x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.pair, self.head = nn.Conv2d(3, 4, 3), Pair(), nn.Linear(16, 2)

        def forward(self, x):
            y, _ = self.pair(self.stem(x))
            return self.head(y.mean(dim=(2, 3)))

    trained = Net().eval()
    small = pc.condense(trained, "involution", initialize="fit", images=images)
    with torch.no_grad():
        wanted = trained.pair(trained.stem(images))[0]
        fitted, fresh = (net.pair(net.stem(images))[0] for net in (small, pc.condense(trained, "involution")))
    assert (fitted - wanted).square().mean() < 0.8 * (fresh - wanted).square().mean()


class Listed(nn.Module):
    """A net that calls the blocks in its list itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["pde", "puppet"])
def test_blocks_in_a_list_are_fitted_together(method, images, tmp_path):
    torch.manual_seed(0)
    trained = Listed().eval()
    fitting.recalibrate_(trained, images)
    fresh, fitted = pc.condense(trained, method), pc.condense(trained, method, initialize="fit", images=images)
    fitting.recalibrate_(fresh, images)
    assert apart(fitted, trained, images) < apart(fresh, trained, images)
    pc.save(fitted, tmp_path / "net.safetensors")
    assert pc.load(tmp_path / "net.safetensors", base=Listed())(images).equal(fitted(images))
