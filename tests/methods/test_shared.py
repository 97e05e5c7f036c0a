"""Shared modules and constants: in state dicts, averages, casts, on the meta device, and in other people's tools."""

import copy
import io
import warnings

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parameters_to_vector, parametrize, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import pocketcnn as pc
from pocketcnn.cost import distinct_tensors
from pocketcnn.methods._shared import AbstractShared
from pocketcnn.methods.puppet import gauge_of, puppeteers_of
from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.models.resnet import BasicBlock, ResNet


def small():
    return ResNet(BasicBlock, (3, 2), (16, 32), num_classes=10, stem="small", width=0.125)


NETS = {
    "ring": ("ring", {"size": 0.3}),
    "affine": ("ring", {"scheme": "affine", "level": "stage"}),
    "windows": ("ring", {"scheme": "windows", "gain": True}),
    "puppet": ("puppet", {"depth": "fixed"}),
    "entropy": ("puppet", {"depth_by": "step", "start": "entropy"}),
    "features": ("puppet", {"measure": "features", "scope": "stage"}),
    "condconv": ("condconv", {"routing": "block"}),
    "pde": ("pde", {}),
    "involution": ("involution", {"group_channels": 1, "reduction": 1}),
}
SHARING = [name for name in NETS if name not in ("pde", "involution")]
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 1, 4)[:, None, None, None]


def made(name, seed=0):
    torch.manual_seed(seed)
    method, options = NETS[name]
    return pc.condense(small(), method, **options)


def same(one, other):
    with torch.no_grad():
        return torch.allclose(one.eval()(X), other.eval()(X), atol=1e-6)


def with_all_names(net):
    """The state dict as torch makes it without us: shared tensors under all of their names."""
    state = {}

    def collect(module, prefix):
        module._save_to_state_dict(state, prefix, False)
        for name, child in module._modules.items():
            collect(child, f"{prefix}{name}.")

    collect(net, "")
    return state


# --- state dicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_state_dict_has_each_tensor_once_under_the_name_of_named_parameters(name):
    net = made(name)
    for state in (net.state_dict(), net.state_dict(), net.state_dict(keep_vars=True), net.state_dict(destination={})):
        assert list(state) == list(distinct_tensors(net))
        assert dict(net.named_parameters()).keys() <= state.keys()
        assert len({t.data_ptr() for t in state.values() if t.numel()}) == len(state)
    part = net.layer2.state_dict()
    assert all(f"layer2.{key}" in with_all_names(net) for key in part)
    copy.deepcopy(net.layer2).load_state_dict(part)
    again = {}
    for _ in range(2):  # one dict for several calls
        net.state_dict(destination=again, prefix="net.")
        assert list(again) == [f"net.{key}" for key in net.state_dict()]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", SHARING)
def test_every_spelling_of_a_state_dict_loads(name, assign):
    net, full = made(name), with_all_names(made(name))
    homes = {full[key].data_ptr(): key for key in reversed(full)}  # the first name of each tensor
    last = {full[key].data_ptr(): key for key in full}
    spellings = (net.state_dict(), full, {key: full[key] for key in (*homes.values(), *last.values())})
    later = {last[t.data_ptr()]: t for t in net.state_dict().values() if t.data_ptr() in last}
    assert not later.keys() - full.keys()
    for state in spellings:
        other = made(name, seed=1)
        assert not same(other, net)
        other.load_state_dict({key: value.clone() for key, value in state.items()}, assign=assign)
        assert same(other, net)
        assert list(other.state_dict()) == list(net.state_dict())
    other = made(name, seed=1)
    only_last = {last[value.data_ptr()]: value.clone() for value in full.values()}
    other.load_state_dict(only_last, assign=assign)
    assert same(other, net)


@pytest.mark.parametrize("name", SHARING)
def test_what_is_missing_or_differs_is_an_error(name):
    net, full = made(name), with_all_names(made(name))
    names = next(names for names in ([k for k in full if full[k].data_ptr() == full[key].data_ptr()] for key in full)
                 if len(names) > 1)  # fmt: skip
    missing = {key: value for key, value in full.items() if key not in names}
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(missing)
    assert set(net.load_state_dict(missing, strict=False).missing_keys) == set(names)
    full[names[-1]] = full[names[-1]] + 1
    with pytest.raises(RuntimeError, match=r"are one tensor of this net, shared by its layers, but differ"):
        net.load_state_dict(full)


@pytest.mark.parametrize("name", NETS)
def test_other_tools_read_and_write_a_state_dict(name, tmp_path):
    net = made(name).eval()
    state = net.state_dict()
    with torch.no_grad():
        assert torch.equal(functional_call(net, state, (X,)), net(X))
        weights = dict(net.named_parameters())
        moved = {key: value * 0.9 if key in weights else value for key, value in state.items()}
        other = made(name, seed=1).eval()
        other.load_state_dict(moved)
        assert torch.allclose(functional_call(net, moved, (X,)), other(X), atol=1e-6)
        assert torch.equal(functional_call(net, state, (X,)), net(X))
    stack_module_state([net, made(name).eval()])
    save_file(state, tmp_path / "a.safetensors")
    save_model(net, str(tmp_path / "b.safetensors"))
    other = made(name, seed=1)
    load_model(other, str(tmp_path / "b.safetensors"))
    assert same(other, net)
    other = made(name, seed=1)
    set_model_state_dict(other, get_model_state_dict(net))
    assert same(other, net)
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    other = made(name, seed=1)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert same(other, net)


# --- averages --------------------------------------------------------------------------------------------------------


def walked(ema, net):
    for kept, now in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        kept.copy_(kept * 0.9 + now * 0.1)  # integers too, as in timm's first average


def by_key(ema, net):
    now = net.state_dict()
    for key, kept in ema.state_dict().items():
        if kept.dtype.is_floating_point:
            kept.mul_(0.9).add_(now[key].detach(), alpha=0.1)


def loaded(ema, net):
    now = net.state_dict()
    mixed = {k: v * 0.9 + now[k] * 0.1 if v.is_floating_point() else v for k, v in ema.state_dict().items()}
    ema.load_state_dict(mixed)


def over_tensors(ema, net):
    pairs = zip((*ema.parameters(), *ema.buffers()), (*net.parameters(), *net.buffers()), strict=True)
    for kept, now in pairs:
        kept.lerp_(now, 0.1) if kept.is_floating_point() else kept.copy_(now)


def averaged(**options):
    def update(ema, net):
        model = AveragedModel(ema, **options)
        model.module.load_state_dict(ema.state_dict())
        model.n_averaged += 1  # the first update would copy
        model.update_parameters(net)
        ema.load_state_dict(model.module.state_dict())

    return update


SCHEMES = {
    "walked": walked,
    "by key": by_key,
    "loaded": loaded,
    "over tensors": over_tensors,
    "multi": averaged(multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "single": averaged(avg_fn=get_ema_avg_fn(0.9), use_buffers=True),
    "without buffers": averaged(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["ring", "windows", "entropy", "features", "condconv", "pde"])
def test_an_average_moves_each_weight_once_and_no_constant(name, scheme):
    net = made(name)
    ema, right = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.rand_like(p))
        for kept, now in zip(right.parameters(), net.parameters(), strict=True):
            kept.lerp_(now, 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SCHEMES[scheme](ema, net)
    for one, other in zip(ema.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(ema.modules(), right.modules(), strict=True):
        assert all(torch.equal(getattr(one, c), getattr(other, c)) for c in getattr(one, "constants", ()))


def test_an_average_from_before_the_calibration_counts_as_calibrated(tmp_path):
    net, average = made("entropy"), made("entropy")
    gauge_of(net).calibrate_([X])
    with torch.no_grad():
        over_tensors(average, net)
    assert 0 < gauge_of(average).calibrated < 1
    pc.save(average, tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors")
    assert [t.dtype for key, t in stored.items() if key.endswith("calibrated")] == [torch.bool]
    assert gauge_of(pc.load(tmp_path / "net.safetensors", base=small())).calibrated == 1


def test_the_plain_average_of_torch_takes_a_calibrated_gauge():
    net = made("entropy")
    gauge_of(net).calibrate_([X])
    average = AveragedModel(net, use_buffers=True)
    for _ in range(3):
        average.update_parameters(net)
    assert gauge_of(average.module).calibrated
    assert same(average.module, net)


def fitted(seed=5):
    """A net on windows with codes that no seed gives."""
    net = made("windows")
    ring = next(m for m in net.modules() if isinstance(m, ParameterRing))
    numbers = torch.randint(0, 256, ring.codes.shape, generator=torch.Generator().manual_seed(seed))
    ring.codes.copy_(numbers.float())
    return net


def first_average(**options):
    def take(net, other):
        average = AveragedModel(other, **options)
        average.module.load_state_dict(other.state_dict())
        average.update_parameters(net)
        return average.module

    return take


def over_state_dict(net, other):
    for kept, now in zip(other.state_dict().values(), net.state_dict().values(), strict=True):
        kept.copy_(now)
    return other


def broadcast(net, other):
    """As the processes of a distributed net start: with the parameters and buffers of the first."""
    for kept, now in zip((*other.parameters(), *other.buffers()), (*net.parameters(), *net.buffers()), strict=True):
        kept.detach().copy_(now)
    return other


@pytest.mark.parametrize("take", [first_average(use_buffers=True), over_state_dict, broadcast], ids=["average", "state dict", "broadcast"])  # fmt: skip
def test_fitted_codes_reach_whatever_takes_the_values_of_the_net(take):
    net = fitted()
    assert same(take(net, made("windows", seed=1)), net)


def test_an_average_of_different_codes_is_refused_where_it_is_read_and_saved(tmp_path):
    net, other = fitted(), fitted(6)
    with torch.no_grad():
        over_tensors(net, other)
    with pytest.raises(ValueError, match=r"codes holds values that are not of .* as an average"):
        net(X)
    with pytest.raises(ValueError, match="codes holds values"):
        pc.save(net, tmp_path / "net.safetensors")


def test_codes_are_bytes_in_a_file(tmp_path):
    net = fitted()
    pc.save(net, tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors")
    assert [t.dtype for key, t in stored.items() if key.endswith("codes")] == [torch.uint8]
    assert same(pc.load(tmp_path / "net.safetensors", base=small()), net)


# --- casts, devices and empty tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["to_empty", "assign", "assign all names", "reset"])
@pytest.mark.parametrize("name", NETS)
def test_a_net_made_on_the_meta_device_is_right_once_it_has_weights(name, how):
    net = fitted() if name == "windows" else made(name)
    with torch.device("meta"):
        other = made(name)
    assert all(t.is_meta for t in (*other.parameters(), *other.buffers()))
    assert other(torch.empty(2, 3, 16, 16, device="meta")).is_meta
    state = {key: value.clone() for key, value in (with_all_names(net) if "all" in how else net.state_dict()).items()}
    if "assign" not in how:
        other.to_empty(device="cpu")
    if how == "reset":
        torch.manual_seed(0)
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        assert torch.isfinite(other.eval()(X)).all()
    other.load_state_dict(state, assign="assign" in how)
    assert same(other, net)
    shared = {id(p) for _, p in other.named_parameters(remove_duplicate=False)}
    assert len(shared) == len(list(net.parameters()))


def test_a_ring_on_the_meta_device_takes_no_room_however_long():
    ring = ParameterRing([(10**6, 10**6, 3, 3)] * 3, 2**31 - 1, device="meta")
    assert all(getattr(ring, name).is_meta for name in ring.constants)
    assert ring.read(0).shape == (10**6, 10**6, 3, 3)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "type", "share_memory", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", SHARING)
def test_constants_survive_every_cast(name, cast):
    net = made(name)
    casts = {
        "type": lambda: copy.deepcopy(net).type(torch.float16),
        "deepcopy": lambda: copy.deepcopy(net),
        "pickle": lambda: torch.load(_stored(net), weights_only=False),
    }
    other = casts.get(cast, lambda: getattr(copy.deepcopy(net), cast)())()
    for one, two in zip(net.modules(), other.modules(), strict=True):
        assert all(torch.equal(getattr(one, c), getattr(two, c)) for c in getattr(one, "constants", ()))
    assert torch.isfinite(other.eval()(X.to(next(other.parameters()).dtype))).all()


def _stored(net):
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    return stored


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda codes: codes.float() + 0.5, "not of the type"),
        (lambda codes: codes.int() + 300, "not of the type"),
        (lambda codes: codes.float() * float("nan"), "not of the type"),
        (lambda codes: codes[1:], "size mismatch"),
    ],
)
def test_codes_that_are_none_are_refused(spoil, message):
    net = made("windows")
    state = net.state_dict()
    key = next(key for key in state if key.endswith("codes"))
    net.load_state_dict({**state, key: state[key].half()})  # bytes are exact in every type
    with pytest.raises(RuntimeError, match=message):
        net.load_state_dict({**state, key: spoil(state[key])})
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({k: v for k, v in state.items() if k != key})


# --- torch's ways to change a parameter ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARING)
def test_vectors_swaps_and_shallow_copies_reach_the_shared_parameters(name):
    net, other = made(name), made(name, seed=1)
    vector_to_parameters(parameters_to_vector(net.parameters()), other.parameters())
    assert all(map(torch.equal, net.parameters(), other.parameters()))
    scaled = dict(net.named_buffers())
    for key, buffer in other.named_buffers():
        buffer.copy_(scaled[key])
    assert same(other, net)
    third = made(name, seed=2)
    for one, two in zip(third.parameters(), copy.deepcopy(net).parameters(), strict=True):
        torch.utils.swap_tensors(one, two)
    third.load_state_dict(net.state_dict())
    assert same(third, net)
    assert same(copy.copy(net), net)


class Doubled(nn.Module):
    def forward(self, values):
        return 2 * values


def test_pruning_and_parametrizations_of_what_is_shared_hold_in_training_and_serving():
    net, net2 = made("ring"), made("puppet")
    for made_net, module, name in (
        (net, next(m for m in net.modules() if isinstance(m, ParameterRing)), "values"),
        (net2, puppeteers_of(net2)[0], "state"),
    ):
        prune.l1_unstructured(module, name, 0.5)
        optimizer = torch.optim.SGD(made_net.parameters(), 0.1)
        for _ in range(2):
            made_net.train()(X).square().mean().backward()
            optimizer.step()
        made_net.eval()
        with torch.no_grad():
            served = made_net(X)
            assert (getattr(module, name) == 0).float().mean() > 0.49
            assert torch.equal(getattr(module, name), getattr(module, f"{name}_orig") * getattr(module, f"{name}_mask"))
            prune.remove(module, name)
            assert torch.allclose(made_net(X), served, atol=1e-6)


@pytest.mark.parametrize(("name", "parameter"), [("windows", "gains"), ("puppet", "state"), ("condconv", "weight")])
def test_a_parametrized_net_stores_and_loads(name, parameter):
    def parametrized(seed):
        net = made(name, seed)
        shared = next(m for m in net.modules() if hasattr(m, parameter) and isinstance(m, AbstractShared))
        parametrize.register_parametrization(shared, parameter, Doubled())
        return net

    net, other = parametrized(0), parametrized(1)
    assert sum("original" in key for key in net.state_dict()) == 1
    other.load_state_dict(net.state_dict())
    assert same(other, net)
    other = parametrized(1)
    other.load_state_dict(with_all_names(net))
    assert same(other, net)


def test_a_layer_alone_keeps_its_ring():
    net = made("ring").eval()
    layer = copy.deepcopy(next(m for m in net.modules() if isinstance(m, RingConv2d)))
    assert {"ring.values"} <= layer.state_dict().keys()
    del net.layer1
    assert any(key.endswith("ring.values") for key in net.state_dict())


def test_casts_change_what_is_not_ours_in_a_ring():
    net = made("ring")
    ring = next(m for m in net.modules() if isinstance(m, ParameterRing))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.spectral_norm(ring, "values")
    net.double().eval()
    assert net(X.double()).isfinite().all()


def test_a_hook_that_makes_new_tensors_of_a_state_dict_leaves_codes_bytes(tmp_path):
    net = fitted()
    net.register_state_dict_post_hook(
        lambda module, state, prefix, meta: state.update({k: v.detach() for k, v in state.items()})
    )
    pc.save(net, tmp_path / "net.safetensors")
    assert same(pc.load(tmp_path / "net.safetensors", base=small()), net)
