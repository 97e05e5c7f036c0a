"""Nets that are trained for few bits compute with the numbers that their files hold."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pocketcnn as pc
from pocketcnn.checkpoint.storage import dequantize, hold_zeros_, prune_, quantize, rounded, weights_of
from pocketcnn.data import load
from pocketcnn.train import PRESETS, TrainConfig, fit
from pocketcnn.train.images import normalized
from pocketcnn.train.optimizers import make_optimizer
from pocketcnn.train.rounding import Rounding, best_steps, densities

LEVELS = {"8": 255, "4": 16, "3": 8, "2": 4, "ternary": 3, "1": 2}
SHORT = dataclasses.replace(PRESETS["demo"], epochs=2)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def few():
    return load("digits", limit=300)


def net(method=None, **options):
    torch.manual_seed(0)
    plain = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
    return plain if method is None else pc.condense(plain, method, **options)


def slow_rounded(row, step, low, high):
    """A row rounded to whole numbers times a step, one value at a time."""
    return [step * min(high, max(low, round(value / step))) for value in row]


@pytest.mark.parametrize("bits", LEVELS)
def test_each_row_has_few_values_and_the_first_and_the_last_layer_many(bits):
    one = net()
    names = list(weights_of(one))
    Rounding(one, bits)
    for name, weight in weights_of(one).items():
        most = LEVELS["8" if name in (names[0], names[-1]) else bits]
        assert max(len(row.unique()) for row in weight.flatten(1)) <= most
    assert max(len(row.unique()) for row in one.get_parameter(names[0]).flatten(1)) > 4


@pytest.mark.parametrize("bits", ["8", "4", "3", "2", "ternary"])
def test_the_start_rounds_best(bits):
    rows = torch.randn(3, 40)
    low, high = {"8": (-127, 127), "4": (-8, 7), "3": (-4, 3), "2": (-2, 1), "ternary": (-1, 1)}[bits]
    found = best_steps(rows, bits)
    for row, step in zip(rows.tolist(), found.tolist(), strict=True):

        def error(step, row=row):
            return sum((a - b) ** 2 for a, b in zip(row, slow_rounded(row, step, low, high), strict=True))

        others = [max(map(abs, row)) * share / 40 / high for share in range(1, 41)]
        assert error(step) <= min(map(error, others)) * 1.0001


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_gradients_of_exact_weights_and_of_steps(sparsity):
    """Beside autograd through the rounding, whose derivative is taken as 1, and through the zeros."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    weight = layers[1].weight
    exact = weight.detach().clone()
    rounding = Rounding(layers, "2", sparsity)
    rounding.restore_()
    rounding.round_()
    log_step = rounding.get_parameter("log_step1").detach().double().requires_grad_()
    latent, x = exact.double().requires_grad_(), torch.randn(7, 6)
    step = log_step.exp()[:, None]
    step = step + (rounded(step.detach(), digits=5) - step).detach()
    ratio = latent / step
    clamped = ratio.clamp(-2.5, 1.5)  # values just outside of the numbers are rounded to the last one, and still move
    through = (clamped + (ratio.round().clamp(-2, 1) - clamped).detach()) * step
    if sparsity:
        kept = rounding.get_buffer("kept1")
        assert int((~kept & (ratio.round() != 0)).sum()) > 0, "or this tests nothing"
        through = through * kept + (
            latent * ~kept - (latent * ~kept).detach()
        )  # zeros have gradients, their steps none
    torch.testing.assert_close(through.float(), weight.detach())
    maps = torch.nn.functional.linear(layers[0](x).double().detach(), through, layers[1].bias.detach().double())
    loss = 1e-3 * torch.nn.functional.linear(maps, layers[2].weight.detach().double()).square().sum()
    loss.backward()
    (
        1e-3 * torch.nn.functional.linear(layers[1](layers[0](x)), layers[2].weight).square().sum()
    ).backward()  # the same in the net
    rounding.restore_()
    assert weight.equal(exact)
    torch.testing.assert_close(weight.grad, latent.grad.float(), atol=1e-5, rtol=1e-3)
    relative = (
        log_step.grad / (log_step.exp() * step[:, 0]).detach() / 4**0.5
    )  # of a step, for a rate of 1, as learned step sizes have it
    assert relative.abs().max() < 0.1, "none is clamped"
    torch.testing.assert_close(rounding.get_parameter("log_step1").grad.double(), relative, atol=1e-5, rtol=1e-3)
    assert rounding.get_parameter("log_step0").grad is None, "of eight bits"


@pytest.mark.parametrize(("method", "options", "bits"), [
    (None, {}, "ternary"), (None, {}, "1"), (None, {}, "4"), ("ring", {"size": 0.3}, "4"), ("puppet", {}, "8"), ("condconv", {"num_experts": 2}, "2"),
    ("pde", {}, "4"), ("involution", {"group_channels": 4}, "4"),
])  # fmt: skip
def test_what_is_trained_is_what_is_stored_bit_for_bit(method, options, bits, few, tmp_path):
    one = net(method, **options)
    fit(one, few, dataclasses.replace(SHORT, bits=bits, lr=0.02), tmp_path / "run")
    assert not one.fc.weight.equal(net(method, **options).fc.weight)
    stored = pc.load(tmp_path / "run" / "model.safetensors")
    small = tmp_path / "small.safetensors"
    pc.save(stored, small, storage="int8", packed=True)
    again, x = pc.load(small), next(iter(normalized(few.test.sample(4).in_order(4), few)))
    for name, weight in weights_of(stored).items():
        assert weight.equal(weights_of(again)[name]), name
    assert again(x).equal(stored(x))
    assert again.eval()(x).equal(one.eval()(x)), "and what the net in memory computes"
    assert pc.materialize(again, **({"entropy": 3.0} if method == "puppet" else {}), partly=True)(x).shape == (4, 10)


def test_a_plain_net_learns_with_three_values(digits, tmp_path):
    accuracy = {
        bits: fit(net(), digits, dataclasses.replace(SHORT, bits=bits, epochs=8), tmp_path / bits)["test_accuracy"]
        for bits in ("off", "ternary")
    }
    assert accuracy["ternary"] > accuracy["off"] - 0.12
    assert accuracy["ternary"] > 0.6
    ternary = pc.load(tmp_path / "ternary" / "model.safetensors")
    size = {bits: pc.save(pc.load(tmp_path / bits / "model.safetensors"), tmp_path / "net.safetensors", storage="int8", packed=True) for bits in accuracy}  # fmt: skip
    weights = sum(weight.numel() for weight in weights_of(ternary).values())
    assert size["off"] - size["ternary"] > 0.6 * weights, "of seven bits or eight each weight keeps 1.6"


def test_a_trained_net_learns_to_do_with_few_bits_from_itself(digits, tmp_path):
    fit(net(), digits, dataclasses.replace(SHORT, epochs=8), tmp_path / "teacher")
    config = dataclasses.replace(PRESETS["distil"], epochs=2, bits="4", precision="float32", channels_last="off")
    found = pc.distil(tmp_path / "teacher", "plain", digits, config, tmp_path / "student")
    assert found["name"] == "resnet20 plain fit"
    teacher, student = (pc.load(tmp_path / name / "model.safetensors") for name in ("teacher", "student"))
    before = pc.train.evaluate(teacher, digits)["test_accuracy"]
    assert found["start"]["validation_accuracy"] == pytest.approx(before, abs=0.1)
    assert found["test_accuracy"] > before - 0.15
    assert len(student.layer2[0].conv1.weight[0].unique()) <= 16


def slow_kept(rows, zeros):
    """Which weights are kept, one at a time: those that are largest beside the others of their row."""
    scored = [
        (abs(value) / (sum(v * v for v in values) / len(values)) ** 0.5, row, column)
        for row, values in enumerate(rows)
        for column, value in enumerate(values)
    ]
    return {(row, column) for _, row, column in sorted(scored)[zeros:]}


def test_small_weights_are_zero_and_ternary_steps_are_means():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    rounding = Rounding(layers, "ternary", sparsity=0.7)
    rounding.restore_()
    exact = [layers[place].weight.tolist() for place in (1, 2)]
    rounding.round_()
    shares = densities([(6, 4), (5, 6)], 0.3)
    assert 24 * shares[0] + 30 * shares[1] == pytest.approx(0.3 * 54)
    assert shares[0] / shares[1] == pytest.approx(10 / 24 * 30 / 11)
    for place, rows in enumerate(exact):
        weight = layers[place + 1].weight
        kept = slow_kept(rows, weight.numel() - round(shares[place] * weight.numel()))
        for row, values in enumerate(rows):
            least = 0.7 * sum(map(abs, values)) / len(values)
            mine = [column for column in range(len(values)) if (row, column) in kept and abs(values[column]) >= least]
            assert weight[row].nonzero()[:, 0].tolist() == mine
            mean = sum(abs(values[column]) for column in mine) / max(1, len(mine))
            for column in mine:
                assert weight[row, column].item() == pytest.approx(math.copysign(mean, values[column]), rel=0.04)
    assert (layers[0].weight != 0).all()
    assert (layers[3].weight != 0).all()


@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    density=st.floats(0.01, 1),
)
def test_densities_are_shares_and_add_up(shapes, density):
    found = densities([torch.Size(shape) for shape in shapes], density)
    sizes = [math.prod(shape) for shape in shapes]
    assert all(0 < share <= 1 for share in found)
    assert sum(share * size for share, size in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))


def test_zeros_become_more_and_may_return():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 40), nn.Linear(40, 2))
    rounding, shares = Rounding(layers, "4", sparsity=0.9), []
    for progress in (0.0, 0.1, 0.25, 0.5, 1.0):
        rounding.restore_()
        rounding.round_(progress)
        shares.append((layers[1].weight == 0).float().mean().item())
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.45, abs=0.1)
    assert shares[-2:] == [pytest.approx(0.9, abs=0.01)] * 2
    zero = (layers[1].weight == 0).nonzero()[0].tolist()
    rounding.restore_()
    with torch.no_grad():
        layers[1].weight[tuple(zero)] = 9.0
    rounding.round_()
    assert layers[1].weight[tuple(zero)] != 0


@pytest.mark.parametrize(
    ("method", "options", "bits"), [(None, {}, "ternary"), (None, {}, "8"), ("ring", {"size": 0.3}, "ternary")]
)
def test_a_sparse_net_learns_and_takes_few_bytes(method, options, bits, digits, tmp_path):
    config = dataclasses.replace(SHORT, epochs=6, bits=bits, sparsity=0.8)
    result = fit(net(method, **options), digits, config, tmp_path / "run")
    assert result["test_accuracy"] > 0.5
    small = pc.load(tmp_path / "run" / "model.safetensors")
    weights = list(weights_of(small).values())
    inner = weights[1:-1] if method is None else [w for w in weights if w.dim() == 1]
    assert sum(int((w == 0).sum()) for w in inner) >= 0.79 * sum(w.numel() for w in inner)
    pc.save(small, tmp_path / "small.safetensors", storage="int8", packed=True)
    parts = pc.checkpoint.ledger(tmp_path / "small.safetensors", small).by_kind()
    entropy = {"ternary": 0.722 + 0.2, "8": 0.722 + 1.5}[bits]
    assert (
        parts["weights" if method is None else "shared weights"]
        < entropy / 8 * sum(w.numel() for w in inner) * 1.1 + 60
    )


def test_a_run_resumes_to_the_same_bits(few, tmp_path):
    config = dataclasses.replace(SHORT, bits="ternary", sparsity=0.5, epochs=3)

    def stop(rows):
        raise KeyboardInterrupt

    fit(net(), few, config, tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(net(), few, config, tmp_path / "cut", on_epoch=stop)
    fit(net(), few, config, tmp_path / "cut")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_norms_take_their_statistics_from_images_as_they_are(few, tmp_path):
    fit(net(), few, dataclasses.replace(SHORT, bits="4", norm_images=200), tmp_path / "run")
    one = pc.load(tmp_path / "run" / "model.safetensors")
    maps = one.conv1(torch.cat(list(normalized(few.train.sample(200).in_order(50), few)))).detach()
    torch.testing.assert_close(one.bn1.running_mean, maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.bn1.running_var, maps.transpose(0, 1).flatten(1).var(1), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Found 22 module")
def test_norms_that_are_frozen_keep_their_statistics(few, tmp_path):
    one = net()
    one.layer1.requires_grad_(False).eval()
    before = one.layer1[0].bn1.running_mean.clone()
    fit(one, few, dataclasses.replace(SHORT, epochs=1, norm_images=100), tmp_path / "run")
    frozen = one.layer1[0].bn1.running_mean.equal(before)
    fit(net_again := net(), few, dataclasses.replace(SHORT, epochs=1), tmp_path / "plain")
    assert not net_again.bn1.running_mean.equal(one.bn1.running_mean)
    assert frozen


def test_muon_trains_few_bits_too(digits, tmp_path):
    config = TrainConfig(epochs=3, batch_size=64, optimizer="muon", lr=0.1, bits="ternary", precision="float32", channels_last="off")  # fmt: skip
    result = fit(net(), digits, config, tmp_path / "run")
    assert result["test_accuracy"] > 0.5


def test_rows_with_a_step_are_stored_as_they_are():
    generator = torch.Generator().manual_seed(0)
    for most in (1, 2, 7, 127):
        numbers = torch.randint(-most, most + 1, (6, 50), generator=generator)
        numbers[0], numbers[1], numbers[2, 1:] = 0, 3 if most > 2 else 1, 0
        steps = (torch.rand(6, generator=generator) + 0.1).half().float()
        weight = numbers.float() * steps[:, None]
        found, scales = quantize(weight)
        assert dequantize(found, scales).equal(weight)
        assert found.abs().max() <= 127
    rough = torch.randn(4, 300, generator=generator)
    found, scales = quantize(rough)
    assert found.abs().amax(1).tolist() == [127] * 4
    assert (dequantize(found, scales) - rough).abs().max() <= scales.max() / 2 * 1.001


@pytest.mark.parametrize("bits", ["8", "4", "ternary", "1"])
def test_rows_that_start_at_zero_learn(bits):
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    nn.init.zeros_(one[1].weight)
    x, target = torch.randn(64, 6), torch.randn(64, 4)
    config = TrainConfig(optimizer="adamw", lr=0.02, weight_decay=0.0, bits=bits)
    rounding = Rounding(one, bits)
    optimizer = make_optimizer(one, config, rounding)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (one(x) - target).square().mean()
        loss.backward()
        rounding.restore_()
        optimizer.step()
        rounding.round_()
    assert one[1].weight.abs().max() > 0.05


@pytest.mark.parametrize("bits", ["8", "2", "1"])
def test_zeros_that_are_held_and_frozen_weights_stay(bits, few, tmp_path):
    one = net()
    prune_(one, 0.5)
    zeros = {name: weight == 0 for name, weight in weights_of(one).items()}
    hold_zeros_(one)
    one.layer1.requires_grad_(False)
    before = one.layer1[0].conv1.weight.clone()
    fit(one, few, dataclasses.replace(SHORT, bits=bits, epochs=1), tmp_path / "run")
    assert one.layer1[0].conv1.weight.equal(before)
    for name, weight in weights_of(one).items():
        assert (weight[zeros[name]] == 0).all(), name


def test_what_cannot_be_rounded():
    with pytest.raises(ValueError, match=r"weights of torch.bfloat16 would be rounded twice"):
        Rounding(net().bfloat16(), "4")
    with pytest.raises(ValueError, match="no bits '5'; known: off, 8, 4, 3, 2, ternary, 1"):
        Rounding(net(), "5")
    with pytest.raises(ValueError, match="no weights to round that are trained"):
        Rounding(nn.BatchNorm2d(3), "4")
    with pytest.raises(ValueError, match="no bits '7'"):
        TrainConfig(bits="7")
    with pytest.raises(ValueError, match="sparsity takes weights that are rounded and can be zero"):
        TrainConfig(sparsity=0.5)
    for sparsity, bits in ((1.0, "4"), (-0.1, "4"), (float("nan"), "4"), (0.5, "1")):
        with pytest.raises(ValueError, match="a sparsity lies in"):
            Rounding(net(), bits, sparsity)
    with pytest.raises(ValueError, match="a first and a last layer only"):
        Rounding(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "4", 0.5)
    with pytest.raises(ValueError, match="one image has no variance"):
        TrainConfig(norm_images=1)
    with pytest.raises(ValueError, match="sparsity must"):
        TrainConfig(sparsity=1.0, bits="4")
    with pytest.raises(ValueError, match="leave out ema_decay or bits"):
        TrainConfig(bits="4", ema_decay=0.9)
