"""Activation checkpointing in both forms: right gradients, or an error that says what to do."""

import copy
import threading
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pocketcnn as pc
from pocketcnn.methods._call_value import CallValue, fingerprint
from pocketcnn.methods.puppet import gauge_of
from pocketcnn.models.resnet import BasicBlock, ResNet


def small():
    return ResNet(BasicBlock, (3, 2, 2), (16, 32, 64), num_classes=10, stem="small", width=0.125)


X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 1, 6)[:, None, None, None]
FORMS = {"reentrant": {"use_reentrant": True}, "not reentrant": {"use_reentrant": False}}
NETS = {
    "ring": ("ring", {}),
    "fixed": ("puppet", {"depth": "fixed"}),
    "entropy": ("puppet", {}),
    "step": ("puppet", {"depth_by": "step", "start": "entropy"}),
    "features": ("puppet", {"measure": "features"}),
    "stored": ("puppet", {"generator": "stored"}),
    "condconv": ("condconv", {}),
    "block": ("condconv", {"routing": "block", "dropout": 0.3}),
    "pde": ("pde", {}),
    "involution": ("involution", {"group_channels": 1, "reduction": 1}),
}
PLACES = {
    "convolutions": ["layer1.{b}conv1", "layer1.{b}conv2", "layer2.{b}conv2"],
    "a block": ["layer2.{b}"],
    "stages": ["layer1", "layer2", "layer3"],
    "the net": [""],
}


def made(name):
    torch.manual_seed(0)
    method, options = NETS[name]
    net = pc.condense(small(), method, **options)
    if gauge := gauge_of(net):
        gauge.calibrate_([X])
    return net.train()


def wrap(net, names, form):
    """Puts checkpoints round modules, as people do: by replacing `forward`."""
    for name in names:
        inside = "0.blocks.1." if len(net.layer2) == 1 else "1."
        name = name.format(b=inside).removesuffix(".")
        module = net.get_submodule(name)
        if name == "":  # round the call, hooks and all
            return lambda x: checkpoint(net, x.requires_grad_(), **form)
        module.forward = partial(checkpoint, module.forward, **form)
    return net


def gradients(net, call, *batches):
    torch.manual_seed(3)
    losses = [call(batch.clone()).square().sum() for batch in batches]
    sum(losses[::-1]).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def assert_alike(found, right):
    for name, grad in right.items():
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4 * max(1.0, float(grad.abs().max())))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_right_wherever_a_checkpoint_is(name, place, form):
    if name in ("ring", "condconv", "involution", "stored") and place != "stages":
        pytest.skip("nothing in it depends on the call")
    if name == "pde" and "{b}" in PLACES[place][0]:
        pytest.skip("its runs are single layers")
    net = made(name)
    right = gradients(net, net, X, X.flip(0)[:4] * 0.7)
    net = made(name)
    call = wrap(net, PLACES[place], FORMS[form])
    assert_alike(gradients(net, call, X, X.flip(0)[:4] * 0.7), right)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["step", "block"])
def test_equal_batches_before_one_backward_pass(name, form):
    net = made(name)
    net.apply(lambda m: setattr(m, "dropout", 0.0))
    right = gradients(net, net, X, X, 0.5 * X)
    net = made(name)
    net.apply(lambda m: setattr(m, "dropout", 0.0))
    call = wrap(net, ["layer2.{b}conv1", "layer2.{b}conv2", "layer3"], FORMS[form])
    assert_alike(gradients(net, call, X, X, 0.5 * X), right)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch warns of the inner one
@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_in_checkpoints_and_several_stages_at_once(form):
    for name in ("step", "block"):
        net = made(name)
        right = gradients(net, net, X)
        net = made(name)
        call = wrap(wrap(net, ["layer2.{b}conv1"], FORMS[form]), ["layer2", "layer3"], FORMS[form])
        assert_alike(gradients(net, call, X), right)

        net = made(name)  # both stages in one part
        net.layer2.forward = _chained(net.layer2, net.layer3, FORMS[form])
        net.layer3 = torch.nn.Identity()
        found = gradients(net, net, X)
        assert_alike({n: g for n, g in found.items() if "layer3" not in n},
                     {n: g for n, g in right.items() if "layer3" not in n})  # fmt: skip


def _chained(first, second, form):
    one, two = first.forward, second.forward
    return lambda x: checkpoint(lambda x: two(one(x)), x, **form)


def test_a_backward_pass_inside_a_call_does_not_touch_the_call():
    """A loss inside the net's call, of another call of the same net: its repetition must not see the outer levels."""
    net = made("step")
    right = gradients(net, net, X[:2], X[2:])
    net = made("step")
    call = wrap(net, ["layer2"], {"use_reentrant": False})
    torch.manual_seed(3)
    first = call(X[:2]).square().sum()
    net.avgpool.register_forward_pre_hook(
        lambda m, a: first.backward() if not seen.append(0) and len(seen) == 1 else None
    )
    seen = []
    call(X[2:]).square().sum().backward()
    assert_alike({name: p.grad for name, p in net.named_parameters()}, right)


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_known_is_an_error(form):
    net = made("step")
    wrap(net, ["layer2"], FORMS[form])
    loss = net(X).square().sum()
    for module in net.modules():
        if hasattr(module, "calls"):
            module.calls._batch._notes.clear()
    with pytest.raises(
        RuntimeError, match="repeats a part of a net without the levels of its images, and its call gave"
    ):
        loss.backward()
    values = CallValue()
    values.note(X, 1, 1)
    values.note(X, 2, 2)
    with pytest.raises(
        RuntimeError, match="calls that gave it equal features differ; put the checkpoint round the whole net"
    ):
        values.noted(X, "a value")


def test_parts_in_a_row_outside_of_the_net_pass_all_blocks(caplog):
    net = made("entropy")
    parts = torch.nn.Sequential(net.conv1, net.bn1, net.layer1, net.layer2, net.layer3)
    parts(X).sum().backward()
    right = {n: p.grad.clone() for n, p in parts.named_parameters()}
    net = made("entropy")
    parts = torch.nn.Sequential(net.conv1, net.bn1, net.layer1, net.layer2, net.layer3)
    checkpoint_sequential(parts, 2, X, use_reentrant=False).sum().backward()
    assert_alike({n: p.grad for n, p in parts.named_parameters()}, right)
    assert "outside of a call of the net" in caplog.text


def test_fingerprints_tell_tensors_apart():
    x = torch.randn(3, 4, 5, 5)
    assert fingerprint(x) == fingerprint(x.clone().to(memory_format=torch.channels_last))
    for other in (x.double(), x[:2], x.flip(0), x.flip(3), -x, x.half(), x + 1e-6, x.flatten(2)):
        assert fingerprint(other) != fingerprint(x)
    assert fingerprint(x[:0]) == fingerprint(x[:0])
    assert copy.deepcopy(CallValue()).get() is None


def test_serving_notes_nothing():
    net = made("step").eval()
    with torch.no_grad():
        net(X)
    net(X)
    assert not any(module.calls._batch._notes for module in net.modules() if hasattr(module, "calls"))


@pytest.mark.parametrize("name", ["step", "block"])
def test_another_thread_may_run_the_backward_pass(name):
    net = made(name)
    right = gradients(net, net, X)
    net = made(name)
    call = wrap(net, ["layer2", "layer3.{b}conv1"], FORMS["not reentrant"])
    torch.manual_seed(3)
    loss = call(X.clone()).square().sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert_alike({n: p.grad for n, p in net.named_parameters()}, right)
