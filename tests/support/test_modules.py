"""Modes and hooks are put back, whatever happens in between."""

import pytest
import torch
from torch import nn

from pocketcnn.support.modules import at_inputs, evaluating, hooked, in_mode, learning, maps_of


def net():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def hooks(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_put_back_in_its_own_mode(training):
    model = net()
    before = modes(model)

    def fail():
        assert set(modes(model)) == {training}
        raise RuntimeError("meanwhile")

    with pytest.raises(RuntimeError, match="meanwhile"), in_mode(model, training=training):
        fail()
    assert modes(model) == before


def test_evaluating_switches_off_gradients():
    model = net()
    with evaluating(model):
        assert not model(torch.ones(1, 1, 2, 2)).requires_grad
    assert modes(model) == [True, True, False, True]


def test_learning_leaves_parameters_as_they_were():
    model = net()
    model[0].bias.requires_grad_(False)
    with torch.no_grad(), learning(list(model[0].parameters())):
        model(torch.ones(1, 1, 2, 2)).sum().backward()
        assert model[0].bias.grad is not None
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert all(p.grad is None for p in model[0].parameters())


def test_hooks_are_removed_also_those_before_one_that_fails():
    model = net()
    with pytest.raises(AttributeError, match="missing"), maps_of(model, ["0", "missing"]):
        pass
    with pytest.raises(RuntimeError, match="meanwhile"), hooked([model[0].register_forward_hook(print)]):
        raise RuntimeError("meanwhile")
    assert not hooks(model)


def test_outputs_and_inputs_by_name():
    model, x = net(), torch.randn(3, 1, 4, 4)
    with maps_of(model, ["0", ""]) as maps:
        y = model(x)
    assert maps[""] is y
    before_relu = at_inputs(model, x, {"2": torch.clone, "0": lambda given: given.sum((1, 2, 3))})
    assert torch.equal(before_relu["0"], x.sum((1, 2, 3)))
    assert (before_relu["2"] < 0).any(), "seen before the ReLU changes it in place"
    assert not hooks(model)
    assert modes(model) == [True, True, False, True]
