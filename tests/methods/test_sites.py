"""What is attached to a layer stays attached: the layer is left alone, the plan says why, and the log names it."""

import functools
import logging
import types

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import CannotMaterialize, NothingToCondense, UnsupportedLayer
from pocketcnn.support.protocols import is_condensed

OPTIONS = {"involution": {"layers": "all", "group_channels": 4}, "puppet": {"depth": "fixed"}}
METHODS = sorted(pc.METHODS)


class Block(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Net(nn.Module):
    """A stem, three blocks and a head."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(3)))
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


X = torch.rand(2, 3, 8, 8)


def condense(net, method, **more):
    return pc.condense(net, method, **{**OPTIONS.get(method, {}), **more})


def reasons(net, method, **more):
    return {row.name: row.reason for row in pc.plan(net, method, **{**OPTIONS.get(method, {}), **more}).rows}


def used(net):
    """Everything that hooks listen to: a pass forward and back, and the net's state saved and loaded."""
    net(X).square().sum().backward()
    net.load_state_dict(net.state_dict())


def counting(seen, result=None):
    def hook(*_args, **_kwargs):
        seen.append(1)
        return result

    return hook


def patched(conv, seen):
    before = conv.forward

    def forward(x):
        seen.append(1)
        return before(x)

    conv.forward = forward


def patched_method(conv, seen):
    def forward(self, x):
        seen.append(1)
        return type(self).forward(self, x)

    conv.forward = types.MethodType(forward, conv)


def patched_partial(conv, seen):
    def forward(before, x):
        seen.append(1)
        return before(x)

    conv.forward = functools.partial(forward, conv.forward)


def patched_inside(conv, seen):
    before = conv._conv_forward

    def inner(*args):
        seen.append(1)
        return before(*args)

    conv._conv_forward = inner


def with_mask(conv, seen):
    conv.register_buffer("mask", torch.ones(8))
    seen.append(1)


WATCHES = {
    "forward hook": ("forward hooks", lambda c, s: c.register_forward_hook(counting(s))),
    "forward hook with keywords": (
        "forward hooks",
        lambda c, s: c.register_forward_hook(counting(s), with_kwargs=True),
    ),
    "forward hook always": ("forward hooks", lambda c, s: c.register_forward_hook(counting(s), always_call=True)),
    "forward pre-hook": ("forward hooks", lambda c, s: c.register_forward_pre_hook(counting(s))),
    "forward pre-hook with keywords": (
        "forward hooks",
        lambda c, s: c.register_forward_pre_hook(counting(s), with_kwargs=True),
    ),
    "backward hook": ("backward hooks", lambda c, s: c.register_full_backward_hook(counting(s))),
    "backward pre-hook": ("backward hooks", lambda c, s: c.register_full_backward_pre_hook(counting(s))),
    "state-dict hook": ("state-dict hooks", lambda c, s: c.register_state_dict_post_hook(counting(s))),
    "state-dict pre-hook": ("state-dict hooks", lambda c, s: c.register_state_dict_pre_hook(counting(s))),
    "loading pre-hook": ("state-dict hooks", lambda c, s: c.register_load_state_dict_pre_hook(counting(s))),
    "loading post-hook": ("state-dict hooks", lambda c, s: c.register_load_state_dict_post_hook(counting(s))),
    "hook of the weight": ("hooks on its weight", lambda c, s: c.weight.register_hook(counting(s))),
    "hook of the bias": ("hooks on its bias", lambda c, s: c.bias.register_hook(counting(s))),
    "hook after gathering": (
        "hooks on its weight",
        lambda c, s: c.weight.register_post_accumulate_grad_hook(counting(s)),
    ),
    "patched forward": ("a forward of its own", patched),
    "patched by a method": ("a forward of its own", patched_method),
    "patched by a partial": ("a forward of its own", patched_partial),
    "patched inside": ("a _conv_forward of its own", patched_inside),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("watch", WATCHES)
def test_what_watches_a_layer_goes_on_to_watch(watch, method, caplog):
    words, attach = WATCHES[watch]
    net, seen = Net(), []
    attach(net.blocks[1].conv1, seen)
    used(net)
    calls, gradients = len(seen), [p.grad.clone() for p in net.parameters()]
    assert calls
    found = reasons(net, method, include=["*"])
    assert any(words in reason and reason.endswith(", which would be lost") for reason in found.values())
    seen.clear()
    small = None
    if pc.METHODS[method].places[0] != "convolution":  # the blocks are one place
        with pytest.raises(NothingToCondense, match=words):
            condense(net, method)
    else:
        with caplog.at_level(logging.WARNING):
            small = condense(net, method, include=["*"])
        assert any(words in line and "leaves blocks.1.conv1 as" in line for line in caplog.messages)
    assert not seen, "planning and condensing call nothing of the user's"
    if small is not None:
        assert any(is_condensed(module) for module in small.modules()), "layers beside are condensed"
        used(small)
        assert len(seen) >= calls
        weight = small.blocks[1].conv1.weight
        assert weight.grad is not None, "the copy is run, not what it was copied from"
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))


@pytest.mark.parametrize("part", ["", "blocks", "stem", "head", "blocks.0.norm"])
@pytest.mark.parametrize("method", METHODS)
def test_hooks_of_what_stays_stay(method, part):
    """Those of containers too, whose parts are replaced."""
    net, seen = Net(), []
    net.get_submodule(part).register_forward_hook(counting(seen))
    next(net.get_submodule(part).parameters()).register_hook(counting(seen))
    used(net)
    before = len(seen)
    try:
        small = condense(net, method)
    except NothingToCondense:
        return
    seen.clear()
    used(small)
    assert len(seen) == before


def test_a_stage_with_a_forward_of_its_own_may_call_its_blocks_in_any_order():
    net = Net()
    net.blocks.forward = lambda x, blocks=net.blocks: blocks[2](blocks[0](blocks[1](x)))
    for method in ("pde", "puppet"):
        (reason,) = reasons(net, method).values()
        assert reason.startswith("in Sequential with a forward of its own, which need not call them")
    small = condense(net, "ring")
    small(X).sum().backward()
    assert small.blocks[1].conv1.ring.values.grad is not None, "the lambda holds the copy's blocks"
    assert all(p.grad is None for p in net.parameters())


def shared_bias(net):
    net.blocks[1].conv1.bias = net.blocks[0].conv1.bias


def shared_weight(net):
    net.blocks[1].conv1.weight = net.blocks[0].conv1.weight


def in_a_list(net):
    net.convs = [net.blocks[1].conv1]


def in_a_method(net):
    net.call = net.blocks[1].conv1.forward


def weight_in_a_list(net):
    net.tied = {"kernel": net.blocks[1].conv1.weight}


TIES = {
    shared_bias: "its bias is shared with another module",
    shared_weight: "its weight is shared with another module",
    in_a_list: "it is kept in convs[0] too, where it would stay",
    in_a_method: "it is kept in call too, where it would stay",
    weight_in_a_list: "its weight is kept in tied['kernel'] too, where it would stay",
    lambda net: with_mask(net.blocks[1].conv1, []): "it has mask, a part of its own, which would be lost",
    lambda net: net.blocks[1].conv1.to(torch.complex64): "its weights are torch.complex64, not floating-point ones",
    lambda net: setattr(net.blocks[1], "conv1", nn.Conv2d(8, 0, 1)): "its weights are [0, 8, 1, 1], none at all",
    lambda net: setattr(net.blocks[1], "conv1", nn.LazyConv2d(8, 3)): (
        "a LazyConv2d has no weights before its first batch; run one through the net first"
    ),
    lambda net: setattr(net.blocks[1], "conv1", torch.jit.script(nn.Conv2d(8, 8, 3, padding=1))): (
        "a scripted Conv2d, not a plain nn.Conv2d"
    ),
    lambda net: setattr(net.blocks[1], "conv1", torch.ao.nn.quantized.Conv2d(8, 8, 3)): (
        "a quantized Conv2d, not a plain nn.Conv2d"
    ),
    lambda net: setattr(net.blocks[1], "conv1", nn.LazyConv2d(8, 3)): (
        "a LazyConv2d has no weights before its first batch; run one through the net first"
    ),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning", "ignore:.*torch.jit.script.*")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Complex modules are a new", "ignore:torch.quantize_per"
)
@pytest.mark.parametrize(("change", "reason"), list(TIES.items()), ids=range(len(TIES)))
@pytest.mark.parametrize("method", METHODS)
def test_layers_that_others_hold_or_that_are_odd_are_named(method, change, reason):
    net = Net()
    change(net)
    if pc.METHODS[method].places[0] == "convolution":
        assert reasons(net, method)["blocks.1.conv1"] == reason
    for row in pc.plan(net, method, **OPTIONS.get(method, {})).rows:
        assert row.becomes or row.reason


def test_parts_that_are_asked_for_by_name_are_refused():
    net = Net()
    net.blocks[1].conv1.register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedLayer, match=r"blocks\.1\.conv1: it has backward hooks, which would be lost"):
        pc.condense(net, "ring", include="blocks.1.conv1", on_unsupported="error")


def test_a_module_that_chooses_among_its_own_methods_is_like_others():
    class Chooses(Block):
        def __init__(self):
            super().__init__()
            self.forward = self.forward_fast

        def forward_fast(self, x):
            return Block.forward(self, x)

    net = Net()
    net.blocks = nn.Sequential(*(Chooses() for _ in range(3)))
    assert pc.plan(net, "pde").replaced == ["blocks.1"]
    assert condense(net, "ring")(X).shape == (2, 4)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: nn.Sequential(net)], ids=range(3))
@pytest.mark.parametrize("method", METHODS)
def test_wrapped_nets(wrap, method):
    small = condense(wrap(Net()), method)
    assert any(is_condensed(module) for module in small.modules())
    assert not hasattr(small, "_orig_mod")
    assert small(X).shape == (2, 4)


def test_the_log_names_only_layers_that_were_asked_for(caplog):
    net = Net()
    net.blocks[1].conv1.register_forward_hook(lambda *_: None)
    pc.condense(net, "ring", include="blocks.0")
    assert not caplog.messages
    pc.condense(net, "ring", include="blocks.1.*")
    (line,) = caplog.messages
    assert line == "ring leaves blocks.1.conv1 as before: it has forward hooks, which would be lost"


@pytest.mark.parametrize("watch", sorted(WATCHES.keys() - {"hook of the weight", "hook after gathering"}))
def test_materializing_and_folding_keep_what_watches_too(watch):
    """`patched inside` calls what a ring layer does not have, and is for convolutions only."""
    words, attach = WATCHES[watch]
    net, seen = Net(), []
    attach(net.blocks[1].conv1, seen)
    folded = pc.fold_norm(net)
    assert isinstance(folded.blocks[0].norm, nn.Identity)
    assert isinstance(folded.blocks[1].norm, nn.BatchNorm2d)
    if watch != "patched inside":
        small = pc.condense(Net(), "ring")
        attach(small.blocks[1].conv1, seen)
        with pytest.raises(CannotMaterialize, match=f"blocks.1.conv1: ring: it has {words}"):
            pc.materialize(small)
        partly = pc.materialize(small, partly=True)
        assert [name for name, module in partly.named_modules() if is_condensed(module)] == ["blocks.1.conv1"]
