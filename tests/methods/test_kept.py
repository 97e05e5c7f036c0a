"""Kept kernels are never stale, whatever changed a parameter."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap

import pocketcnn as pc
from pocketcnn.methods._kept import Kept, same_bits
from pocketcnn.methods.puppet import GeneratedConv2d
from pocketcnn.models.resnet import BasicBlock, ResNet


def small():
    return ResNet(BasicBlock, (3, 2), (16, 32), num_classes=10, stem="small", width=0.125)


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def puppet():
    return pc.condense(small(), "puppet", depth="fixed").eval()


def equilibrium():
    return pc.create_model("equilibrium", width=0.25).eval()


NETS = {"puppet": puppet, "equilibrium": equilibrium}


def served(net):
    with torch.no_grad():
        return net(X)


def assert_fresh(net):
    torch.testing.assert_close(served(net), served(copy.deepcopy(net)), rtol=0, atol=0)


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adagrad"])
@pytest.mark.parametrize("name", NETS)
def test_kernels_follow_every_optimizer(name, optimizer, how):
    net = NETS[name]()
    before = served(net)
    steps = getattr(torch.optim, optimizer)(net.parameters(), 0.01, **how)
    net(X).square().sum().backward()
    steps.step()
    assert not torch.equal(served(net), before)
    assert_fresh(net)


def by_data(p):
    p.data.mul_(1.5)


def by_numpy(p):
    array = p.detach().numpy()
    array *= np.float32(1.5)


def by_dlpack(p):
    torch.from_dlpack(p.detach()).mul_(1.5)


def by_set_data(p):
    p.data = p.data * 1.5


def by_foreach(p):
    torch._foreach_mul_([p.data], 1.5)


def by_storage(p):
    storage = p.untyped_storage()
    storage.copy_((p.detach() * 1.5).untyped_storage())


def by_swap(p):
    torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 1.5))


def by_another_thread(p):
    thread = threading.Thread(target=lambda: p.data.mul_(1.5))
    thread.start()
    thread.join()


def by_inference(p):
    with torch.inference_mode():
        p.mul_(1.5)


WAYS = (by_data, by_numpy, by_dlpack, by_set_data, by_foreach, by_storage, by_swap, by_another_thread, by_inference)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_kernels_follow_every_way_to_write(name, way):
    net = NETS[name]()
    before = served(net)
    for key, p in net.named_parameters():
        if any(word in key for word in ("state", "mix", "inner", "outer")):
            way(p)
            p.data[0] += 1  # the equilibrium's kernels are scaled to their norms
    assert not torch.equal(served(net), before)
    assert_fresh(net)
    net.load_state_dict({key: value.clone() for key, value in NETS[name]().state_dict().items()}, assign=True)
    assert_fresh(net)


def test_a_kernel_that_is_handed_out_is_a_copy():
    net = puppet()
    before = served(net)
    for layer in net.modules():
        if isinstance(layer, GeneratedConv2d):
            with torch.no_grad():
                layer.dense_weight().mul_(2)
    assert torch.equal(served(net), before)


@pytest.mark.parametrize("name", NETS)
def test_calls_with_other_parameters_leave_no_kernels_behind(name):
    net, other = NETS[name](), NETS[name]()
    state = {key: value.clone() for key, value in other.state_dict().items()}
    before = served(net)
    with torch.no_grad():
        assert torch.equal(functional_call(net, state, (X,)), served(other))
        assert torch.equal(served(net), before)
        assert torch.equal(functional_call(net, dict(other.named_parameters()), (X,)), served(net)) is False
        assert torch.equal(served(net), before)
    assert {id(p) for p in net.parameters()}.isdisjoint({id(t) for t in state.values()})
    assert_fresh(net)


def test_transforms_see_through_kept_kernels():
    net = puppet()
    served(net)
    name = next(key for key in dict(net.named_parameters()) if key.endswith("state"))
    state = dict(net.named_parameters())[name].detach()

    def call(values):
        return functional_call(net, {name: values}, (X,))

    with torch.no_grad():
        both = vmap(call)(torch.stack([state, 2 * state]))
        torch.testing.assert_close(both[1], call(2 * state), rtol=1e-4, atol=1e-5)
        slope = jvp(call, (state,), (torch.ones_like(state),))[1]
        assert slope.abs().sum() > 0
        with forward_ad.dual_level():
            made = call(forward_ad.make_dual(state, torch.ones_like(state)))
            torch.testing.assert_close(forward_ad.unpack_dual(made).tangent, slope)


def test_equal_bits_are_kept_and_copies_start_empty():
    calls: list[int] = []

    def make():
        calls.append(1)
        return object()

    kept, source = Kept(), torch.tensor([float("nan"), 1.0])
    first = kept.get(0, [source], make)
    assert kept.get(0, [source.clone()], make) is first, "NaNs with equal bits are equal"
    assert kept.get(1, [source], make) is not first
    for other in (torch.tensor([float("nan"), 1.5]), source.double(), source[:1], torch.tensor([float("nan"), -1.0])):
        assert kept.get(0, [other], make) is not first
    assert kept.get(0, [source], make, (source,)) is not kept.get(0, [source], make, (source.clone(),))
    assert copy.deepcopy(kept).get(0, [source], make) is not kept.get(0, [source], make)
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert same_bits(torch.arange(3), torch.arange(3))
