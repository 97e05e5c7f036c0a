"""Copies carry what `copy.deepcopy` leaves out, and no part of the net that they were copied from."""

import functools
import logging
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import pocketcnn as pc
from pocketcnn import export
from pocketcnn.errors import UnsupportedNet
from pocketcnn.support.copying import copied, kept_things, skeleton


class Keeps(nn.Module):
    """Keeps the outputs of its last call: alone, in a list and in a dictionary of an object."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.logits, self.maps = None, []
        self.notes = Notes()

    def forward(self, x):
        x = self.conv(x)
        self.maps = [x]
        self.logits = self.fc(x.mean((2, 3)))
        self.notes.of["sum"] = x.sum()
        return self.logits


class Notes:
    def __init__(self):
        self.of = {}


def pruned(fc):
    prune.l1_unstructured(fc, "weight", amount=0.3)


def parametrized(fc):
    parametrizations.weight_norm(fc)


X = torch.rand(2, 3, 8, 8)


def test_kept_outputs_are_copied_without_their_graph_and_named(caplog):
    net = Keeps()
    net(X)
    with caplog.at_level(logging.WARNING):
        small = copied(net)
    assert caplog.messages == [
        "Keeps: copied without the gradient graph of logits, maps[0], notes.of['sum'], kept from an earlier call"
    ] or set(caplog.messages[0].split(" of ")[1].split(", kept")[0].split(", ")) == {
        "logits", "maps[0]", "notes.of['sum']"
    }  # fmt: skip
    assert torch.equal(small.logits, net.logits)
    assert not small.logits.requires_grad
    assert net.logits.grad_fn is not None
    assert small.maps[0] is not net.maps[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("change", [pruned, weight_norm, spectral_norm, parametrized])
@pytest.mark.parametrize("verb", [
    lambda net: pc.condense(net, "ring", include="1"), lambda net: pc.plan(net, "ring"), pc.fold_norm, pc.materialize,
    lambda net: pc.measure(net, (3, 8, 8)),
])  # fmt: skip
def test_pruned_and_normed_layers_elsewhere(verb, change, caplog):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    change(net[4])
    net(X).sum().backward()
    made = verb(net)
    if isinstance(made, nn.Module):
        weight = next(p for p in made[4].parameters() if p.dim() == 2)
        before = made(X)
        with torch.no_grad():
            weight.mul_(2).add_(0.1)
        assert not torch.equal(made(X), before), "the copy makes its weight of its own parameters"
        made(X).sum().backward()
        assert weight.grad is not None
    assert not [line for line in caplog.messages if "graph" in line]


def test_hooks_and_attributes_of_parameters_are_copied():
    seen = []
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[0].weight.register_hook(lambda gradient: seen.append("hook"))
    net[0].bias.register_hook(lambda gradient: gradient * 2)
    net[1].weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter))
    net[1].bias.register_hook(lambda gradient: seen.append("frozen"))
    net[1].bias.requires_grad_(False)
    net[1].weight.no_decay = True
    small = copied(net)
    assert small[1].weight.no_decay
    assert not small[1].bias.requires_grad
    small(torch.ones(1, 3)).sum().backward()
    net(torch.ones(1, 3)).sum().backward()
    assert [s if isinstance(s, str) else id(s) for s in seen] == [
        id(small[1].weight), "hook", id(net[1].weight), "hook"
    ]  # fmt: skip
    assert torch.equal(small[0].bias.grad, net[0].bias.grad)


def test_functions_that_hold_parts_hold_those_of_the_copy():
    net, seen = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)), []

    def with_default(x, other=net[1]):
        return other(x) + 1

    def decorated(call):
        @functools.wraps(call)
        def inner(*args):
            seen.append(1)
            return call(*args)

        return inner

    net[0].forward = with_default
    net[2].forward = decorated(decorated(net[2].forward))
    net[2].register_forward_hook(lambda module, args, y: y + net[1].bias)
    net[1].register_forward_hook(functools.partial(lambda scale, module, args, y: y * scale, 2))
    small = copied(net)
    x = torch.rand(2, 3)
    assert torch.equal(small(x), net(x))
    assert len(seen) == 4, "what is outside of the net is shared"
    small(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in (small[1].weight, small[1].bias, small[2].weight))
    assert small[0].forward.__name__ == "with_default"


def test_what_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].guard = {"lock": threading.Lock()}
    with pytest.raises(UnsupportedNet, match=r"1\.guard cannot be copied \(TypeError: cannot pickle '_thread.lock'"):
        pc.materialize(net)


def test_a_skeleton_shares_nothing_and_calls_nothing_of_users():
    net, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LazyConv2d(2, 1)), []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    net[1].forward = lambda x: seen.append(1)
    bare, origins = skeleton(net)
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert bare(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 2, 6, 6)
    assert not seen
    assert origins[bare[1]] is net[1]
    assert "forward" in vars(net[1])
    sharing, _ = skeleton(net[:2], weights=True)
    assert sharing[0].weight is net[0].weight
    assert sharing[1].running_mean is not net[1].running_mean


def test_things_kept_in_cycles_are_found_once():
    net = nn.Linear(2, 2)
    net.notes = {"self": net, "list": [net.weight]}
    net.notes["again"] = net.notes
    assert [path for path, _ in kept_things(net)] == ["notes['list'][0]"]


LAZY = {
    "LazyLinear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
    "LazyConv2d": lambda: nn.LazyConv2d(3, 1),
    "LazyBatchNorm2d": lambda: nn.LazyBatchNorm2d(),
}


@pytest.mark.parametrize("kind", LAZY)
def test_lazy_parts_are_named_or_left_lazy(kind, tmp_path, caplog):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), LAZY[kind]())
    says = rf"^3(\.1)?: a {kind} has no weights before its first batch; run one through the net first$"
    for call in (
        lambda: pc.measure(net, (3, 8, 8)),
        lambda: pc.plan(net, "ring", input_size=(3, 8, 8)),
        lambda: pc.save(net, tmp_path / "net.safetensors"),
        lambda: export.export(net, tmp_path / "net.onnx", input_size=(3, 8, 8)),
    ):
        with pytest.raises(UnsupportedNet, match=says):
            call()
    with caplog.at_level(logging.WARNING):
        plan = pc.plan(net, "ring")
    assert "not counted: 3" in caplog.text
    small = pc.condense(net, "ring")
    assert plan.replaced == [name for name, m in small.named_modules() if getattr(m, "condensed_by", "") == "ring"]
    assert any(torch.nn.parameter.is_lazy(t) for t in net.state_dict(keep_vars=True).values()), "not run"
    small(torch.rand(2, 3, 8, 8))
    pc.save(small, tmp_path / "net.safetensors")


def test_nets_without_values_are_named(tmp_path):
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    for call in (lambda: pc.measure(net), lambda: pc.save(net, tmp_path / "net.safetensors")):
        with pytest.raises(
            UnsupportedNet, match=r"0\.weight: on the meta device, without values; give the net some first"
        ):
            call()
