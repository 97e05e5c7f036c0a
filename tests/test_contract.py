"""What every method promises, with its default options. No test here lists names: a new method is tested by being there."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import CannotMaterialize, NothingToCondense
from pocketcnn.support.protocols import HasDense, LooksAtEntropy, is_condensed

pytestmark = pytest.mark.parametrize("method", sorted(pc.METHODS))


class Block(nn.Module):
    """A convolution and batch norm around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        nn.init.constant_(self.bn.weight, 0.01)

    def forward(self, x):
        return (x + self.bn(self.conv(x))).relu()


class Small(nn.Module):
    """A stem, two convolutions of 16 channels of which one is used twice, a strided one, a stage of equal blocks that is
    used twice, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 1)
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.again = self.first
        self.stage = nn.Sequential(*(Block() for _ in range(4)))
        self.stage_again = self.stage
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.again(self.middle(self.first(self.stem(x).relu())).relu())
        return self.head(self.stage_again(self.stage(self.second(x))).mean((2, 3)))


def condensed(method, **options):
    return pc.condense(Small(), method, **options)


def images(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype)


def test_shape_is_that_of_the_layer_replaced(method):
    plain = Small().eval()
    small = pc.condense(plain, method)
    for size in ((8, 8), (9, 7), (16, 5)):
        x = images(2, 16, *size)
        for name, module in small.named_modules():
            if is_condensed(module) and name in dict(plain.named_modules()):
                assert module(x).shape == plain.get_submodule(name)(x).shape


def test_what_a_condensed_layer_offers(method):
    small = condensed(method)
    for layer in filter(is_condensed, small.modules()):
        assert layer.condensed_by == method
        assert isinstance(layer.why_not_dense, str)
        assert layer.why_not_dense or isinstance(layer, HasDense)
        assert not isinstance(layer, LooksAtEntropy) or isinstance(layer, HasDense)


def test_every_stored_number_that_is_used_gets_a_gradient(method):
    small = condensed(method)
    small(images(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).any(), name


def test_state_dict_and_deepcopy_round_trips(method):
    small, other = condensed(method).eval(), condensed(method).eval()
    x = images(2, 3, 8, 8)
    assert not torch.equal(small(x), other(x))
    other.load_state_dict(small.state_dict())
    assert torch.equal(small(x), other(x))
    assert torch.equal(small(x), copy.deepcopy(small)(x))


def test_file_round_trip_of_a_foreign_net(method, tmp_path):
    small = condensed(method).eval()
    x = images(2, 3, 8, 8)
    pc.save(small, tmp_path / "small.safetensors")
    assert torch.equal(pc.load(tmp_path / "small.safetensors", base=Small())(x), small(x))


def test_gradcheck(method):
    small = condensed(method).double()
    layer = next(module for module in small.modules() if is_condensed(module)).eval()
    x = images(1, 16, 3, 3, dtype=torch.float64).requires_grad_()
    # Piecewise linear activations are differentiable almost everywhere; a step of 1e-6 rarely crosses a kink.
    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs, eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_moves(method, dtype):
    small = condensed(method).to(dtype).eval()
    y = small(images(2, 3, 8, 8, dtype=dtype))
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


def test_autocast_and_channels_last(method):
    small = condensed(method).eval()
    x = images(2, 3, 8, 8)
    expected = small(x)
    small = small.to(memory_format=torch.channels_last)
    torch.testing.assert_close(small(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(small(x).float(), expected, rtol=0.1, atol=0.1)


def test_meta_device(method):
    with torch.device("meta"):
        small = condensed(method)
        assert small(torch.empty(2, 3, 8, 8)).shape == (2, 5)


def test_shared_modules_stay_shared(method):
    small = condensed(method)
    assert small.first is small.again
    assert small.stage is small.stage_again
    assert all("again" not in site for step in small.provenance.steps for site in step.sites)


def test_condense_leaves_the_given_net_alone_and_keeps_its_state(method):
    plain = Small().eval()
    plain.head.train()
    plain.second.weight.requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    small = pc.condense(plain, method)
    assert not any(map(is_condensed, plain.modules()))
    assert all(torch.equal(before[key], value) for key, value in plain.state_dict().items())
    assert torch.equal(small.stem.weight, plain.stem.weight)
    assert small.stem.weight is not plain.stem.weight
    assert small.head.training
    for name, module in small.named_modules():
        if is_condensed(module):
            assert not module.training
            frozen = [not p.requires_grad for p in module.parameters(recurse=False)]
            assert all(frozen) if name == "second" else not any(frozen)


def test_materialize_gives_equal_outputs_or_says_why_not(method):
    small = condensed(method).eval()
    x = images(2, 3, 9, 7)
    try:
        dense = pc.materialize(small)
    except CannotMaterialize:
        first = next(n for n, m in small.named_modules() if is_condensed(m))
        with pytest.raises(CannotMaterialize, match=rf"{first}.*{method}"):
            pc.materialize(small)
        return
    assert not any(map(is_condensed, dense.modules()))
    assert dense.first is dense.again
    torch.testing.assert_close(dense(x), small(x), rtol=1e-5, atol=1e-5)


def test_plan_changes_nothing_and_counts_as_promised(method):
    plain = Small()
    before, state = copy.deepcopy(plain.state_dict()), torch.random.get_rng_state()
    plan = pc.plan(plain, method, input_size=(3, 8, 8))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(map(is_condensed, plain.modules()))
    assert all(torch.equal(before[key], value) for key, value in plain.state_dict().items())
    small = pc.condense(plain, method)
    assert plan.replaced == [n for n, m in small.named_modules() if is_condensed(m)]
    assert plan.after == pc.measure(small, (3, 8, 8))
    assert plan.before == pc.measure(plain, (3, 8, 8))
    old = sum(row.numbers_before for row in plan.rows if row.becomes)
    new = plan.shared_numbers + sum(row.numbers_after for row in plan.rows if row.becomes)
    assert plan.after.trainable_params == plan.before.trainable_params - old + new
    saved = sum(row.macs_before - row.macs_after for row in plan.rows)
    assert plan.after.macs == plan.before.macs - saved
    for row in plan.rows:
        assert bool(row.becomes) != bool(row.reason)


def test_condensing_again_passes_over_what_is_condensed(method):
    small = condensed(method)
    rows = pc.plan(small, method).rows
    for row in rows:
        if row.name in small.provenance.steps[0].sites:
            assert row.reason == f"already condensed by {method!r}"


def test_nothing_to_condense_names_the_places_and_why(method):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    record = pc.METHODS[method]
    reasons = [f"{site.name}: {site.reason}" for site in record.sites(net, record.options()) if not site.optional]
    why = "; ".join(reasons) or f"it has no {record.places[1]}"
    assert all(site.reason for site in record.sites(net, record.options()) if not site.optional)
    with pytest.raises(
        NothingToCondense, match=re.escape(f"{method!r} found no {record.places[0]} to work on in Sequential ({why})")
    ):
        pc.condense(net, method)


def test_compiles_to_equal_outputs(method, unchecked_shapes):
    small = condensed(method).eval()
    x = images(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), small(x), rtol=1e-5, atol=1e-5)
