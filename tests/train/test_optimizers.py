"""Muon, and the groups in which optimizers get the parameters."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.methods.ring import RingConv2d
from pocketcnn.train import TrainConfig, fit
from pocketcnn.train.optimizers import Muon, kernels_of, make_optimizer, orthogonalized, turned_kernels

MUON = TrainConfig(optimizer="muon", epochs=2, batch_size=32, lr=0.2, momentum=0.6, state_lr=0.3, rest_lr=0.5, norm_bias_factor=4.0,
                   precision="float32", channels_last="off")  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (5, 5), (1, 9), (9, 1)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(s.clamp(min=s.max() / 10)) @ v
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.25
    turned = u.T @ found @ v.T  # in the matrix's own vectors
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1


def test_a_step_is_a_share_of_the_norm_which_stays():
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=layout))
        optimizer = Muon([{"params": [kernel], "kind": "kernels", "lr": 0.1, "momentum": 0.5}])
        before = kernel.detach().clone()
        for _ in range(3):
            kernel.grad = torch.randn_like(kernel) * 100
            optimizer.step()
            assert float(kernel.detach().norm()) == pytest.approx(float(before.norm()), rel=1e-5)
        kernel.grad = torch.zeros_like(kernel)
        optimizer.state[kernel]["momentum_buffer"].zero_()
        before = kernel.detach().clone()
        optimizer.step()
        assert torch.equal(kernel, before)


def test_kernels_of_a_stack_are_turned_one_by_one():
    torch.manual_seed(0)
    kernels, gradients = torch.randn(3, 6, 4, 3, 3) * torch.tensor([1.0, 5, 0.2]).view(3, 1, 1, 1, 1), []
    stack, single = nn.Parameter(kernels.flatten(1).clone()), [nn.Parameter(k.clone()) for k in kernels]
    options = {"kind": "kernels", "lr": 0.1, "momentum": 0.5}
    together, apart = (
        Muon([{"params": [stack], "stack": (3, 6, 4, 3, 3), **options}]),
        Muon([{"params": single, **options}]),
    )
    for _ in range(3):
        gradients = torch.randn(3, 6, 4, 3, 3)
        stack.grad = gradients.flatten(1)
        for kernel, gradient in zip(single, gradients, strict=True):
            kernel.grad = gradient
        together.step(), apart.step()
        torch.testing.assert_close(stack.detach().view_as(kernels), torch.stack([k.detach() for k in single]))


def test_what_is_no_kernel_takes_the_steps_of_sgd():
    torch.manual_seed(0)
    one, other = (nn.Parameter(torch.arange(5.0)) for _ in range(2))
    muon = Muon([{"params": [one], "kind": "rest", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}])
    sgd = torch.optim.SGD([other], 0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for _ in range(4):
        one.grad = other.grad = torch.randn(5)
        muon.step(), sgd.step()
        torch.testing.assert_close(one, other)


def test_the_order_of_columns_and_the_layout_make_no_difference():
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(start.clone(memory_format=layout))
        kernel.grad = gradient.clone(memory_format=layout)
        Muon([{"params": [kernel], "kind": "kernels", "lr": 0.1}]).step()
        results.append(kernel.detach())
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


def groups_of(net, config):
    names = {id(p): name for name, p in net.named_parameters()}
    return [
        ({names[id(p)] for p in group["params"] if p.requires_grad}, group["lr"], group["weight_decay"])
        for group in make_optimizer(net, config).param_groups
    ]


def test_who_trains_what():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)
    )
    net[1].weight.requires_grad_(False)
    assert groups_of(net, MUON) == [
        ({"0.weight"}, 0.2, 0.0),
        ({"0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}, 0.5, 5e-4),
        ({"1.bias"}, 2.0, 1.25e-4),
    ]
    everything = {name for name, p in net.named_parameters() if p.requires_grad}
    for name in ("sgd", "adamw"):
        config = dataclasses.replace(MUON, optimizer=name)
        assert groups_of(net, config) == [(everything - {"1.bias"}, 0.2, 5e-4), ({"1.bias"}, 0.8, 1.25e-4)]
        assert groups_of(net, dataclasses.replace(config, norm_bias_factor=1.0)) == [(everything, 0.2, 5e-4)]


def test_it_learns(digits, tmp_path):
    torch.manual_seed(0)
    net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.5)
    result = fit(net, digits, dataclasses.replace(MUON, epochs=6, batch_size=64), tmp_path / "run")
    assert result["test_accuracy"] > 0.9


@pytest.mark.parametrize(("method", "states"), [
    ("ring", [({"layer1.0.conv1.ring.values"}, 0.6, 0.0)]),
    ("puppet", [({"layer1.0.puppeteer.state"}, 0.6, 0.0),
                ({"layer1.0.puppeteer.mix_rows", "layer1.0.puppeteer.mix_columns"}, 0.6 / 3, 0.0)]),
])  # fmt: skip
def test_what_kernels_are_read_off_has_a_rate_of_its_own(method, states):
    net = pc.condense(pc.create_model("speednet", width=0.125), method)
    kernels = {name for name, p in net.named_parameters() if any(p is kernel for kernel in kernels_of(net))}
    names = {name for name, p in net.named_parameters() if p.requires_grad} - kernels
    names -= {name for group, *_ in states for name in group}
    biases = {name for name in names if ".bn" in name}
    config = dataclasses.replace(MUON, state_lr=0.6)
    assert groups_of(net, config) == [
        *([(kernels, 0.2, 0.0)] if kernels else []),
        *states,
        (names - biases, 0.5, 5e-4),
        (biases, 2.0, 1.25e-4),
    ]


def steps_of_one_layer(net, images, read):
    """Trains a net for three steps; returns its kernel after each."""
    optimizer = make_optimizer(net, dataclasses.replace(MUON, lr=0.1, state_lr=0.1))
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        with turned_kernels(net):
            net(images).square().mean().backward()
        optimizer.step()
        found.append(read(net).detach().clone())
    return found


def test_a_ring_of_one_layer_is_turned_as_the_plain_kernel_is():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 9, 9)
    layer = RingConv2d(3, 6, 3, size=1.0, scheme="identity", bias=False)
    plain = layer.dense()
    # The first step alone: later ones look ahead along directions that were orthogonalized before they were added up.
    ring = steps_of_one_layer(layer, images, lambda net: net.dense_weight())
    kernel = steps_of_one_layer(plain, images, lambda net: net.weight)
    torch.testing.assert_close(ring[0], kernel[0], atol=2e-3, rtol=2e-2)
    for one, other in zip(ring[1:], kernel[1:], strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_every_kernel_has_the_same_say_in_units_of_its_own_size():
    """By hand: the gradient of the ring is the sum, over the layers, of the directions at the places that they read."""
    torch.manual_seed(0)
    net = pc.condense(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3)), "ring", size=0.3, include="*")
    images, layers = torch.randn(4, 3, 9, 9), [net[0], net[2]]
    plain = nn.Sequential(net[0].dense(), nn.Tanh(), net[2].dense())
    plain(images).square().mean().backward()
    ring, wanted = net[0].ring, torch.zeros_like(net[0].ring.values)
    for layer, dense in zip(layers, (plain[0], plain[2]), strict=True):
        direction = orthogonalized(dense.weight.grad.flatten(1)).flatten()
        direction = direction / direction.norm() / dense.weight.detach().square().mean().sqrt()
        indices, signs = ring.places(layer.slot)
        wanted.index_add_(0, indices.long(), direction * signs * ring.scales[layer.slot])
    with turned_kernels(net):
        net(images).square().mean().backward()
    torch.testing.assert_close(ring.values.grad, wanted, atol=0.02 * float(wanted.abs().max()), rtol=0.02)
    for layer, dense in zip(layers, (plain[0], plain[2]), strict=True):
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, msg="all else passes as it is")
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("method", ["ring", "puppet", "condconv"])
def test_condensed_nets_learn_with_it(method, digits, tmp_path):
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25), method)
    result = fit(net, digits, dataclasses.replace(MUON, epochs=4, batch_size=64, lr=0.1), tmp_path / "run")
    assert result["test_accuracy"] > 0.3, "guessing has 0.1"


def test_a_net_without_kernels_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="muon' turns kernels, and Sequential has none; take sgd or adamw"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), few, MUON, tmp_path / "run")
    assert kernels_of(nn.Conv2d(1, 4, 3)) == []
    with pytest.raises(ValueError, match="is no matrix"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "kind": "kernels"}])
    with pytest.raises(ValueError, match="no kind of parameters 'ring'; known: kernels, states, factors, rest"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "kind": "ring"}])


@pytest.mark.parametrize("method", ["plain", "ring"])
def test_a_run_with_muon_resumes_to_the_same_bits_and_keeps_its_optimizer(few, tmp_path, method):
    def net():
        torch.manual_seed(0)
        plain = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
        return plain if method == "plain" else pc.condense(plain, method)

    def stop(rows):
        raise KeyboardInterrupt

    fit(net(), few, MUON, tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(net(), few, MUON, tmp_path / "cut", on_epoch=stop)
    with pytest.raises(ValueError, match=r"other settings \(optimizer; optimizer was 'muon', now 'sgd'\)"):
        fit(net(), few, dataclasses.replace(MUON, optimizer="sgd"), tmp_path / "cut")
    fit(net(), few, MUON, tmp_path / "cut")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


@pytest.mark.parametrize(("method", "options", "name"), [
    ("ring", {"gain": True}, "gains"), ("puppet", {"start": "entropy"}, "gain"),
])  # fmt: skip
def test_factors_of_kernels_move_by_their_rate(method, options, name, digits, tmp_path):
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25), method, **options)
    [factors] = {id(p): p for n, p in net.named_parameters() if n.endswith(f".{name}")}.values()
    before = factors.detach().clone()
    fit(net, digits, dataclasses.replace(MUON, epochs=1, batch_size=256), tmp_path / "run", test=False)
    moved = (factors.detach() - before).abs()
    steps = 0.1 * MUON.state_lr * 6 / (1 - MUON.momentum)  # a rate of 0.03, no more than six steps, with momentum
    assert 0 < moved.square().mean().sqrt() < steps


def test_clipping_leaves_turned_gradients_alone(digits, tmp_path):
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25), "ring")
    config = dataclasses.replace(MUON, epochs=1, batch_size=256, weight_decay=0.0, clip_norm=1e-6)
    ring, head = (net.get_parameter(name) for name in ("layer1.0.conv1.ring.values", "fc.weight"))
    before = [p.detach().clone() for p in (ring, head)]
    fit(net, digits, config, tmp_path / "run", test=False)
    moved = [float((p.detach() - old).norm() / old.norm()) for p, old in zip((ring, head), before, strict=True)]
    assert moved[0] > 0.1
    assert moved[1] < 1e-4


def test_copies_of_a_net_and_pruned_rings_are_not_turned():
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("speednet", width=0.125), "ring")
    images = torch.randn(2, 3, 16, 16)

    def gradient(net, name="values"):
        net.zero_grad()
        net(images).square().mean().backward()
        return getattr(net.layer1[0].conv1.ring, name).grad.clone()

    plain = gradient(net)
    with turned_kernels(net):
        torch.testing.assert_close(gradient(copy.deepcopy(net)), plain)
    ring = net.layer1[0].conv1.ring
    torch.nn.utils.prune.random_unstructured(ring, "values", amount=0.5)
    with turned_kernels(net):
        pruned = gradient(net, "values_orig")
    assert pruned.norm() < 2 * plain.norm()
    assert [group["kind"] for group in make_optimizer(net, MUON).param_groups] == ["rest", "rest"]
