"""Stem, head and the order of blocks are those of the calls, whatever the order of definition."""

import itertools
import random
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import NothingToCondense, PocketError
from pocketcnn.methods._passes import calls_of, image_sizes
from pocketcnn.support.protocols import is_condensed
from pocketcnn.surgery import provenance, rebuild

X = torch.rand(2, 3, 12, 12)
OPTIONS = {"involution": {"layers": "all", "group_channels": 4}, "puppet": {"depth": "fixed"}}
METHODS = sorted(pc.METHODS)


def condense(net, method, **more):
    return pc.condense(net, method, **{**OPTIONS.get(method, {}), **more})


def plan(net, method, **more):
    return pc.plan(net, method, **{**OPTIONS.get(method, {}), **more})


class Ordered(nn.Module):
    """The same net with its parts defined in any order; the head may be a convolution."""

    PARTS: ClassVar = {
        "stem": lambda: nn.Conv2d(3, 8, 3),
        "first": lambda: nn.Conv2d(8, 8, 3, padding=1),
        "second": lambda: nn.Conv2d(8, 8, 3, padding=1),
        "head": lambda: nn.Conv2d(8, 4, 1),
    }

    def __init__(self, order, channels=3):
        super().__init__()
        for name in order:
            setattr(self, name, self.PARTS[name]())
        if channels != 3:
            self.stem = nn.Conv2d(channels, 8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x)).relu()).mean((2, 3), keepdim=True))


@pytest.mark.parametrize("order", list(itertools.permutations(Ordered.PARTS)), ids="-".join)
def test_the_order_of_definition_decides_nothing(order):
    for method in ("ring", "condconv"):
        rows = {row.name: row.reason for row in pc.plan(Ordered(order), method).rows}
        assert rows == {
            "stem": "the stem: the first layer is left alone by default",
            "head": "the classifier: the last layer is left alone by default",
            "first": "",
            "second": "",
        }
    small = pc.condense(Ordered(order), "ring")
    assert {name for name, m in small.named_modules() if is_condensed(m)} == {"first", "second"}
    assert pc.fold_norm(small)(X).shape == (2, 4, 1, 1)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_images_of_any_channels_are_tried(channels):
    net = Ordered(["head", "second", "first", "stem"], channels)
    assert (channels, 32, 32) in image_sizes(net)
    assert pc.plan(net, "ring").replaced == ["second", "first"]


def test_a_net_that_cannot_be_run_says_that_it_guessed():
    class Two(Ordered):
        def forward(self, x, mask):
            return super().forward(x * mask)

    reasons = {row.name: row.reason for row in pc.plan(Two(["head", "first", "second", "stem"]), "ring").rows}
    assert reasons["head"] == "the stem: the first layer is left alone by default (guessed by the order of definition)"
    assert reasons["stem"].startswith("the classifier: the last layer")
    assert reasons["stem"].endswith("(guessed by the order of definition)")


def test_of_stems_side_by_side_the_one_defined_first_is_the_stem():
    class Branches(Ordered):
        def __init__(self):
            super().__init__(self.PARTS)
            self.other = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.head(self.second(self.first(self.other(x) + self.stem(x))))

    assert pc.plan(Branches(), "ring").replaced == ["first", "second", "other"]


def test_looking_changes_nothing():
    class Noisy(Ordered):
        def __init__(self):
            super().__init__(self.PARTS)
            self.register_buffer("calls", torch.zeros(()))
            self.kept = []

        def forward(self, x):
            self.calls += 1
            self.kept.append(x)
            return super().forward(x + torch.rand(()) + random.random())

    net = Noisy().train()
    drawn = torch.get_rng_state()
    assert [call.module for call in calls_of(net) if call.module is not net] == [
        net.stem, net.first, net.second, net.head
    ]  # fmt: skip
    pc.plan(net, "ring")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not net.calls
    assert not net.kept
    assert all(module.training for module in net.modules())


class Block(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Pair(Block):
    """Takes a map and its complement, and returns two."""

    def forward(self, pair):
        return super().forward(pair[0]), pair[1]


class Masked(Block):
    def forward(self, x, mask=None):
        return super().forward(x if mask is None else x * mask)


class Stages(nn.Module):
    """Five blocks in a container, called in a way of the net's own."""

    def __init__(self, call, container=nn.Sequential, block=Block):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        blocks = [block() for _ in range(5)]
        if container is nn.ModuleDict:
            self.blocks = container({f"b{number}": block for number, block in enumerate(blocks)})
        else:
            self.blocks = container(blocks) if container is nn.ModuleList else container(*blocks)
        self.head = nn.Linear(8, 4)
        self.call = call

    def forward(self, x):
        x = self.call(self, self.stem(x))
        return self.head((x[0] if isinstance(x, tuple) else x).mean((2, 3)))


def one_by_one(net, x):
    for block in net.blocks.values() if isinstance(net.blocks, nn.ModuleDict) else net.blocks:
        x = block(x)
    return x


def by_keyword(net, x):
    for block in net.blocks:
        x = block(x=x)
    return x


def with_mask(net, x):
    for block in net.blocks:
        x = block(x, torch.ones_like(x))
    return x


def backwards(net, x):
    for number in reversed(range(5)):
        x = net.blocks[number](x)
    return x


def collected(net, x):
    maps = [x]
    for block in net.blocks:
        maps.append(block(maps[-1]))
    return sum(maps)


def deep_dropping(net, x):
    return net.blocks(x) if not net.training or random.random() < 0.5 else x


def twice(net, x):
    return net.blocks(net.blocks(x))


def pairs(net, x):
    return net.blocks((x, -x))


def by_number(net, x):
    for number in range(len(net.blocks)):
        x = net.blocks[number](x)
    return x


def with_sum(net, x):
    y = x
    for block in net.blocks:
        x = block(x)
        y = y + x
    return y


def with_relu_in_place(net, x):
    for block in net.blocks:
        x = torch.relu_(block(x))
    return x


ORDER = "in ModuleList, which need not call them"
BY_OTHERS = "itself, not by its nn.Sequential; it may need each block"
CALLS = [
    (lambda net, x: net.blocks(x), nn.Sequential, Block, ""),
    (twice, nn.Sequential, Block, ""),
    (deep_dropping, nn.Sequential, Block, ""),
    (one_by_one, nn.Sequential, Block, BY_OTHERS),
    (by_keyword, nn.Sequential, Block, BY_OTHERS),
    (with_mask, nn.Sequential, Masked, BY_OTHERS),
    (backwards, nn.Sequential, Block, BY_OTHERS),
    (collected, nn.Sequential, Block, BY_OTHERS),
    (lambda net, x: net.blocks[2](net.blocks(x)), nn.Sequential, Block, BY_OTHERS),
    (pairs, nn.Sequential, Pair, "given or returns something other than one map"),
    (one_by_one, nn.ModuleList, Block, ""),
    (by_number, nn.ModuleList, Block, ""),
    (by_keyword, nn.ModuleList, Block, ""),
    (one_by_one, nn.ModuleDict, Block, ""),
    (backwards, nn.ModuleList, Block, ORDER),
    (collected, nn.ModuleList, Block, ORDER),
    (with_sum, nn.ModuleList, Block, ORDER),
    (with_relu_in_place, nn.ModuleList, Block, ORDER),
    (with_mask, nn.ModuleList, Masked, ORDER),
    (lambda net, x: one_by_one(net, one_by_one(net, x)), nn.ModuleList, Block, ORDER),
]


@pytest.mark.parametrize(("call", "container", "block", "reason"), CALLS, ids=range(len(CALLS)))
@pytest.mark.parametrize("method", ["pde", "puppet"])
def test_stages_are_replaced_or_refused(method, call, container, block, reason):
    net = Stages(call, container, block)
    rows = plan(net, method).rows
    if not reason:
        small = condense(net, method)
        assert small(X).shape == (2, 4)
        assert any(is_condensed(module) for module in small.modules())
        again = rebuild(net, provenance(small).steps)
        again.load_state_dict(small.state_dict())
        assert again.eval()(X).equal(small.eval()(X))
        return
    assert not [row.name for row in rows if row.becomes]
    allowed = (reason, "its blocks do not turn") if block is Pair else (reason,)
    assert all(any(words in row.reason for words in allowed) for row in rows), rows
    with pytest.raises(NothingToCondense):
        condense(net, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_stage(method):
    net = Stages(lambda net, x: net.blocks(x))
    net.blocks = torch.compile(net.blocks, backend="eager")
    small = condense(net, method)
    assert len(plan(net, method).replaced) == sum(is_condensed(module) for module in small.modules())


NETS = {
    "resnet20": lambda: pc.create_model("resnet20", width=0.25),
    "stages": lambda: Stages(lambda net, x: net.blocks(x)),
    "list": lambda: Stages(one_by_one, nn.ModuleList),
}


PAIRS = [("stages", first, second) for first in METHODS for second in METHODS]
PAIRS += [("resnet20", first, second) for first in ("ring", "condconv") for second in ("puppet", "pde")]


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_a_method_after_a_method_works_or_says_why_not(name, first, second):
    check(NETS[name](), [(first, None), (second, None)])


def check(net, steps):
    """Condenses step by step: each works as planned, or raises an error of the package that `plan` explains."""
    for method, include in steps:
        given = {} if include is None else {"include": include}
        try:
            planned = plan(net, method, **given)
        except ValueError as error:  # nothing is named so any more, or options exclude each other
            with pytest.raises(type(error)):
                condense(net, method, **given)
            continue
        try:
            net = condense(net, method, **given)
        except PocketError:
            assert not planned.replaced
            continue
        assert tuple(planned.replaced) == net.provenance.steps[-1].sites
        assert net.eval()(X).shape[0] == len(X)


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["stages", "list"]),
    st.lists(
        st.tuples(st.sampled_from(METHODS), st.sampled_from([None, "*.0*", "*1*", "*.conv*", "layer2", "blocks"])),
        min_size=2, max_size=3,
    ),
)  # fmt: skip
def test_plans_agree_with_what_is_done(name, steps):
    check(NETS[name](), steps)
