"""New layers are as frozen, parameter by parameter, and in the mode of what they replace."""

import itertools

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.support.protocols import MakesKernel

OPTIONS = {"involution": {"layers": "all", "group_channels": 4}, "puppet": {"depth": "fixed"}}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


def net(blocks=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(*(Block() for _ in range(blocks))), nn.Conv2d(8, 2, 1))


def condense(model, method, **more):
    return pc.condense(model, method, **{**OPTIONS.get(method, {}), **more})


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("weight", "bias", "norm"), list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("method", ["ring", "condconv", "involution", "puppet"])
def test_single_layers_keep_what_was_frozen(method, weight, bias, norm):
    plain = net()
    for block in plain[1]:
        block.conv.weight.requires_grad_(weight)
        block.conv.bias.requires_grad_(bias)
        block.norm.requires_grad_(norm)
    small = condense(plain, method)
    convs = [module for module in small.modules() if isinstance(module, MakesKernel)]
    assert convs
    for conv in convs:
        assert {p.requires_grad for p in conv.generator_parameters()} == {weight}
        assert conv.bias.requires_grad == bias
    assert {p.requires_grad for m in small.modules() if type(m) is nn.BatchNorm2d and m.num_features == 8
            for p in m.parameters()} == {norm}  # fmt: skip
    assert flags(small[0]) == flags(plain[0]), "beside it nothing changes"
    if method in ("ring", "puppet"):
        dense = pc.materialize(small)
        made = [module for module in dense.modules() if type(module) is nn.Conv2d and module.kernel_size == (3, 3)][1:]
        assert {(conv.weight.requires_grad, conv.bias.requires_grad) for conv in made} == {(weight, bias)}


@pytest.mark.parametrize(("weight", "norm"), list(itertools.product([True, False], repeat=2)))
def test_norms_of_a_global_layer_are_frozen_as_those_of_the_blocks(weight, norm):
    plain = net(4)
    for block in plain[1]:
        block.conv.requires_grad_(weight)
        block.norm.requires_grad_(norm)
    layer = pc.condense(plain, "pde")[1][1]
    for part in layer.modules():
        for parameter in part.parameters(recurse=False):
            assert parameter.requires_grad == (norm if isinstance(part, nn.BatchNorm2d) else weight)


@pytest.mark.parametrize("method", ["ring", "puppet"])
def test_what_layers_share_is_frozen_only_if_all_of_them_were(method):
    plain = net()
    plain[1].requires_grad_(False)
    shared = next(m for m in condense(plain, method).modules() if isinstance(m, MakesKernel)).generator_parameters
    assert not any(p.requires_grad for p in shared())
    plain[1][2].conv.weight.requires_grad_(True)
    convs = [m for m in condense(plain, method).modules() if isinstance(m, MakesKernel)]
    assert all(p.requires_grad for p in convs[0].generator_parameters())
    assert not any(conv.bias.requires_grad for conv in convs)


@pytest.mark.parametrize("method", sorted(pc.METHODS))
def test_modes_are_kept(method):
    """Of a net in training whose norms are in evaluation mode, and the other way round."""
    for training in (True, False):
        plain = net(4).train(training)
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(not training)
        small = condense(plain, method)
        kept = {name: module.training for name, module in plain.named_modules()}
        for name, module in small.named_modules():
            of_blocks = isinstance(module, nn.BatchNorm2d) and "generator" not in name  # involution's own norm
            assert module.training == kept.get(name, training != of_blocks), name


@pytest.mark.parametrize("method", sorted(pc.METHODS))
def test_fitting_leaves_the_given_net_as_it_was(method, monkeypatch):
    from pocketcnn.surgery import fitting

    monkeypatch.setattr(fitting, "STEPS", 2)
    monkeypatch.setattr("pocketcnn.methods.puppet._FIT_STEPS", 2)
    plain = net(4)
    plain[1][0].norm.eval()
    plain[1][0].conv.weight.requires_grad_(False)
    handle = plain[1][3].norm.register_forward_hook(lambda *_: None)
    images = torch.rand(8, 3, 12, 12)
    plain(images).sum().backward()

    def state():
        return (
            {name: t.clone() for name, t in plain.state_dict().items()},
            [p.grad if p.grad is None else p.grad.clone() for p in plain.parameters()],
            flags(plain),
            [m.training for m in plain.modules()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in plain.modules()],
        )

    before = state()
    options = {"on_unsupported": "skip", "initialize": "fit", "images": images}
    if method in ("pde", "puppet"):
        handle.remove()
        before = state()
    small = condense(plain, method, **options)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert {id(p) for p in small.parameters()}.isdisjoint(map(id, plain.parameters()))


@pytest.mark.parametrize("method", ["ring", "condconv", "involution"])
def test_notes_in_attributes_are_kept(method):
    plain = net()
    plain[1][1].conv.scale, plain[1][1].conv.slot = 3.0, "taken"
    layer = condense(plain, method)[1][1].conv
    assert layer.scale == 3.0
    assert method != "ring" or layer.slot != "taken", "an attribute of the new layer's own stays"
