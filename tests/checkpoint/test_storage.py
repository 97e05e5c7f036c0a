import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketcnn as pc
from pocketcnn.checkpoint import storage
from pocketcnn.cost.params import distinct_tensors
from pocketcnn.errors import BrokenFile, NewerFormat

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(deadline=None)
@given(shapes, st.floats(1e-6, 1e6))
def test_quantized_numbers_are_half_a_step_away_at_most(shape, size):
    weight = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    numbers, scales = storage.quantize(weight)
    assert numbers.shape == weight.shape
    assert numbers.dtype == torch.int8
    assert len(scales) == (1 if len(shape) == 1 else shape[0])
    back = storage.dequantize(numbers, scales)
    rows = zip(weight.view(len(scales), -1), back.view(len(scales), -1), scales, strict=True)
    for given_row, row, scale in rows:  # slow and obvious: value by value
        for one, other in zip(given_row.flatten().tolist(), row.flatten().tolist(), strict=True):
            assert abs(one - other) <= 0.501 * float(scale)
        assert float(row.abs().max()) == pytest.approx(float(given_row.abs().max()), rel=1e-5)


def test_zeros_stay_zeros_and_what_is_not_finite_is_refused():
    numbers, scales = storage.quantize(torch.zeros(2, 3))
    assert torch.equal(storage.dequantize(numbers, scales), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        storage.quantize(torch.tensor([1.0, float("nan")]))


@pytest.fixture
def ring_net():
    return pc.condense(pc.create_model("resnet20"), "ring", size=0.1, seed=2**40).eval()


def test_weights_are_kernels_classifier_and_ring(ring_net):
    names = list(storage.weights_of(ring_net))
    assert names == ["conv1.weight", "layer1.0.conv1.ring.values", "fc.weight"]
    assert len(storage.weights_of(pc.create_model("resnet20"))) == 22  # 19 of the chain, 2 shortcuts, the classifier


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pruned", [0.0, 0.6])
def test_a_file_holds_what_the_storage_keeps(ring_net, tmp_path, kind, pruned):
    storage.prune_(ring_net, pruned)
    sizes = {name: pc.save(ring_net, tmp_path / name, storage=s) for name, s in (("whole", None), ("small", kind))}
    loaded = pc.load(tmp_path / "small")
    weights, kept = storage.weights_of(ring_net), dict(loaded.named_parameters())
    for name, tensor in distinct_tensors(ring_net).items():
        stored = loaded.state_dict()[name]
        assert stored.dtype == tensor.dtype
        if name not in weights or kind == "float32":
            assert torch.equal(stored, tensor), name
        elif kind == "float16":
            assert torch.equal(stored, tensor.half().float()), name
        else:
            assert torch.equal(stored, storage.dequantize(*storage.quantize(tensor))), name
    assert all(torch.equal(kept[name] == 0, weight == 0) for name, weight in weights.items() if kind == "float32")
    assert pc.save(loaded, tmp_path / "again", storage=kind) == sizes["small"]
    again = pc.load(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.state_dict().items())
    if pruned or kind != "float32":
        assert sizes["small"] < sizes["whole"]


def test_an_int8_ring_takes_a_quarter_of_its_bytes(ring_net):
    values = {"layer1.0.conv1.ring.values": storage.weights_of(ring_net)["layer1.0.conv1.ring.values"]}
    full, small = (
        sum(tensor.nbytes for tensor in storage.pack(values, ring_net, kind)[0].values())
        for kind in ("float32", "int8")
    )
    assert small == full // 4 + 4  # one float32 scale


@pytest.mark.parametrize("method", sorted(pc.METHODS))
@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_every_method_survives_it(method, kind, tmp_path):
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet32_4stage", num_classes=4, width=0.5), method)
    x = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        for _ in range(20):  # so that batch norm has seen images
            net(x)
        net.eval()
        pc.save(net, tmp_path / "net", storage=kind)
        wanted, found = net(x), pc.load(tmp_path / "net")(x)
    assert (found - wanted).norm() < (0.01 if kind == "float16" else 0.3) * wanted.norm()


def test_other_precisions_come_back(tmp_path):
    net = pc.create_model("resnet20").double().eval()
    pc.save(net, tmp_path / "net", storage="int8")
    assert {p.dtype for p in pc.load(tmp_path / "net").parameters()} == {torch.float64}


def test_pruning_takes_the_smallest_of_each_tensor():
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert storage.prune_(net, 0.5) == pytest.approx(0.5)
    for name, parameter in net.named_parameters():
        if parameter.dim() < 2:
            assert torch.equal(parameter, before[name])
            continue
        gone = parameter == 0
        assert gone.sum() == parameter.numel() // 2
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
    assert storage.prune_(net, 0.25, ["2.weight"]) == pytest.approx(0.5), "what is zero is smallest"


def test_zeros_are_held_during_training():
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", width=0.25), "ring", size=0.2)
    storage.prune_(net, 0.7)
    storage.hold_zeros_(net)
    zeros = {name: p == 0 for name, p in storage.weights_of(net).items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(p == 0, zeros[name]) for name, p in storage.weights_of(net).items())


def test_bad_requests(ring_net, tmp_path):
    with pytest.raises(ValueError, match="no storage 'int4'; known: float32, float16, int8"):
        pc.save(ring_net, tmp_path / "net", storage="int4")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), not 1.0"):
        storage.prune_(ring_net, 1.0)
    with pytest.raises(ValueError, match="is no weight of this ResNet"):
        storage.prune_(ring_net, 0.5, ["fc.bias"])
    with pytest.raises(ValueError, match="has no weights to prune"):
        storage.prune_(torch.nn.ReLU(), 0.5)
    with torch.no_grad():
        ring_net.fc.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"fc.weight: its largest value, 1e\+06, does not fit in float16"):
        pc.save(ring_net, tmp_path / "net", storage="float16")
    ring_net.fc.half()
    with pytest.raises(ValueError, match="weights of several types"):
        pc.save(ring_net, tmp_path / "net", storage="int8")
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_tampered_with_is_refused(ring_net, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    storage.prune_(ring_net, 0.5)
    pc.save(ring_net, tmp_path / "net", storage="int8")
    with safe_open(tmp_path / "net", framework="pt") as file:
        metadata = file.metadata()
    for name in ("storage.scales", "storage.masks"):
        tensors = load_file(tmp_path / "net")
        tensors[name] = tensors[name][:1].clone()
        save_file(tensors, tmp_path / "bad", metadata=metadata)
        with pytest.raises(BrokenFile, match="its checksum differs"):
            pc.load(tmp_path / "bad")
        save_file(tensors, tmp_path / "bad", metadata={"pocketcnn": metadata["pocketcnn"]})
        with pytest.raises(BrokenFile, match="its weights do not fit ResNet"):
            pc.load(tmp_path / "bad")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_that_no_weight_has_are_refused(ring_net, tmp_path, scale):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    pc.save(ring_net, tmp_path / "net", storage="int8")
    with safe_open(tmp_path / "net", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "net")
    tensors["storage.scales"][3] = scale
    save_file(tensors, tmp_path / "bad", metadata={"pocketcnn": metadata["pocketcnn"]})
    with pytest.raises(BrokenFile, match=r"a scale of conv1.weight is not between 0 and infinity"):
        pc.load(tmp_path / "bad")


def test_foreign_modules_with_weights_of_their_own():
    class Fusion(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.Parameter(torch.ones(3))
            self.gain = torch.nn.Parameter(torch.ones(4, 1, 1))
            self.conv = torch.nn.Conv2d(3, 4, 3)

    assert list(storage.weights_of(Fusion())) == ["conv.weight"]
    layer = pc.methods.condconv.CondConv2d(4, 4, 3)
    assert list(storage.weights_of(layer)) == ["experts", "router.weight"], "a bias is none, although it has two axes"


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (dict(weights="int4"), NewerFormat, "stored as int4, which this version does not know; upgrade"),
        (dict(dtype="quint8"), BrokenFile, "weights cannot be quint8; known: float16, bfloat16"),
        (dict(sparse=["conv1.weight"]), BrokenFile, "its weights do not fit ResNet"),
        (dict(dtype=3), BrokenFile, "Expected str, got int at storage.dtype"),
    ],
)
def test_unknown_storages_are_refused(ring_net, tmp_path, change, error, what):
    import json

    from safetensors.torch import load_file, save_file

    pc.save(ring_net, tmp_path / "net", storage="int8")
    header = pc.checkpoint.read_header(tmp_path / "net")
    header["storage"].update(change)
    save_file(load_file(tmp_path / "net"), tmp_path / "bad", metadata={"pocketcnn": json.dumps(header)})
    with pytest.raises(error, match=what):
        pc.load(tmp_path / "bad")
