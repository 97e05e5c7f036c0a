"""Nets of several outputs, and others that do not fit, are refused before the first step and left as they were."""

import dataclasses
import logging
import random
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cost import measure_memory
from pocketcnn.errors import BadData, PocketError
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.outputs import check_input

Named = namedtuple("Named", "logits aux")
Odd = namedtuple("Odd", "first second")


@dataclasses.dataclass
class Answer:
    scores: Any


class Net(nn.Module):
    """Returns whatever `wrap` makes of its logits; uses all kinds of random numbers."""

    def __init__(self, wrap, classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, classes)
        )
        self.wrap = wrap

    def forward(self, x):
        random.random(), np.random.rand()  # noqa: NPY002
        return self.wrap(self.layers(x), self.training)


def several(make, only_in_training=False):
    return lambda y, training: make(y) if training or not only_in_training else y


OUTPUTS = {
    "dict": (
        several(lambda y: {"aux": y, "logits": y}),
        r"a dict of 'aux', 'logits' in evaluation mode.* y\['logits'\]$",
    ),
    "dict without logits": (several(lambda y: {"out": y}), r"a dict of 'out' .* y\['out'\]$"),
    "empty dict": (several(lambda y: {}), r"a dict of nothing"),
    "tuple": (several(lambda y: (y, y)), r"a tuple of 2 .* y\[0\]$"),
    "tuple of one": (several(lambda y: (y,)), r"a tuple of 1 "),
    "list": (several(lambda y: [y]), r"a list of 1 .* y\[0\]$"),
    "namedtuple": (several(lambda y: Named(y, y)), r"an object Named with \.logits .* y\.logits$"),
    "other namedtuple": (several(lambda y: Odd(y, y)), r"Odd with \.first, \.second .* y\.first$"),
    "dataclass": (several(Answer), r"Answer with \.scores .* y\.scores$"),
    "object": (several(lambda y: SimpleNamespace(logits=y)), r"SimpleNamespace with \.logits .* y\.logits$"),
    "None": (several(lambda y: None), r"a NoneType "),
    "aux in training": (several(lambda y: Named(y, y), True), r"Named with \.logits in training mode.* y\.logits$"),
    "tuple in training": (several(lambda y: (y, y), True), r"a tuple of 2 in training mode"),
    "one number each": (lambda y, training: y[:, 0], r"output for an image is \[\]; make the net with num_classes=10"),
    "too few": (lambda y, training: y[:, :5], r"output for an image is \[5\]"),
    "a map": (lambda y, training: y[:, :, None, None].expand(-1, -1, 2, 3), r"for an image is \[10, 2, 3\]"),
    "batch lost": (lambda y, training: y.flatten()[None], r"output for 2 images is \[1, 20\]; .* a row for each image"),
    "labels": (lambda y, training: y.long(), r"output is of torch\.int64 .* not their numbers"),
    "detached": (lambda y, training: y.detach(), r"depends on no weight that learns"),
}


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("wanted_mode", [True, False])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_cannot_be_trained_are_refused_before_the_first_step(few, tmp_path, kind, wanted_mode):
    wrap, message = OUTPUTS[kind]
    net = Net(wrap).train(wanted_mode)
    before, states = state_of(net), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with pytest.raises(BadData, match=message) as refused:
        fit(net, few, TrainConfig(epochs=1, batch_size=32), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not any((tmp_path / "run").iterdir())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training is wanted_mode
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


@pytest.mark.parametrize("kind", ["dict", "object", "a map"])
def test_evaluation_refuses_them_too_but_not_what_only_training_returns(few, kind):
    with pytest.raises(BadData):
        evaluate(Net(OUTPUTS[kind][0]).eval(), few)
    evaluate(Net(OUTPUTS["aux in training"][0]).eval(), few)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10)),
        nn.Sequential(nn.Conv2d(1, 4, 9), nn.Flatten(), nn.LazyLinear(10)),
        nn.Sequential(nn.Flatten(), nn.Linear(7, 10)),
        nn.Bilinear(64, 64, 10),  # takes two tensors
        nn.Embedding(4, 10),  # takes integers
        nn.ModuleList([nn.Flatten()]),  # takes nothing
    ],
    ids=lambda net: type(net).__name__,
)
def test_nets_that_cannot_take_the_images_are_refused_in_one_line(few, net):
    with pytest.raises(BadData, match="cannot take them") as refused:
        check_input(net, few, training=True)
    assert "\n" not in str(refused.value)


def test_a_hook_on_the_net_may_make_one_tensor_of_several_outputs(few):
    net = Net(OUTPUTS["tuple in training"][0])
    calls = []
    net.register_forward_hook(lambda module, args, y: calls.append(1) or (y[0] if isinstance(y, tuple) else y))
    check_input(net, few, training=True)
    assert len(calls) == 2


class Centred(nn.Module):
    """Replaces its buffer by assignment, as nets trained against themselves do."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)
        self.register_buffer("centre", torch.zeros(10))

    def forward(self, x):
        y = self.last(x.flatten(1))
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * y.detach().mean(0)
        return y - self.centre


class Uncopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def __deepcopy__(self, memo):
        raise TypeError("there is one of me")

    def forward(self, x):
        assert not self.training
        return self.last(x.flatten(1))


class Counted(Uncopied):
    """Changes a buffer in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_no_trace_of_the_check_is_left(few, caplog):
    plain = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
    puppet = pc.condense(plain, "puppet", measure="features")
    for net in (Centred(), puppet, Uncopied(), Counted()):
        buffers = {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}
        with caplog.at_level(logging.WARNING):
            check_input(net, few, training=True)
        assert all(buffer is buffers[name][0] for name, buffer in net.named_buffers())
        assert all(torch.equal(*pair) for pair in buffers.values())
    assert caplog.text == ""


def test_hooks_keep_their_order(few):
    """The user's makes three channels of one, before ours looks at the images."""
    net = nn.Sequential(pc.create_model("resnet20", width=0.25))
    net.register_forward_pre_hook(lambda module, given: (given[0].expand(-1, 3, -1, -1),))
    check_input(pc.condense(net, "puppet"), few, training=True)


def test_an_error_of_the_library_passes(few):
    def unstable(y, training):
        raise PocketError("a step is too long")

    with pytest.raises(PocketError, match=r"^a step is too long$"):
        check_input(Net(unstable), few)


def test_memory_of_several_outputs_is_measured():
    plain, double = Net(several(lambda y: y)), Net(several(lambda y: {"a": y, "b": (y, 3)}))
    size = (1, 8, 8)
    assert measure_memory(double, size, training=True) >= measure_memory(plain, size, training=True) > 0
