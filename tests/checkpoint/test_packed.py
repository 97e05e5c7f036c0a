"""Packed files load the same nets as ordinary ones, take fewer bytes, and are refused when they are damaged or lie."""

import contextlib
import dataclasses
import json
import tracemalloc

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn import checkpoint
from pocketcnn.checkpoint import coding, packed
from pocketcnn.checkpoint.header import check_header
from pocketcnn.checkpoint.sealed import CHECKSUM, read_head, seal
from pocketcnn.checkpoint.storage import lighten_, prune_
from pocketcnn.cost import distinct_tensors
from pocketcnn.errors import BrokenFile, CannotWrite, MissingPassphrase, NewerFormat

METHODS = {
    "plain": {},
    "ring": {"size": 0.1},
    "windows": {"size": 500, "scheme": "windows", "gain": True},
    "windows of 4": {"size": 5000, "scheme": "windows", "window": 4, "initialize": "fit"},
    "two rings": {"size": 900, "scheme": "windows", "level": "stage"},
    "puppet": {"size": 700},
    "pde": {},
    "condconv": {"num_experts": 2},
    "involution": {"group_channels": 4},
}


def made(name):
    torch.manual_seed(0)
    net = pc.create_model("resnet20", width=0.5, num_classes=3)
    if name != "plain":
        method = "ring" if METHODS[name].get("size") and name != "puppet" else name
        net = pc.condense(net, method, **METHODS[name])
    net.train()(torch.randn(8, 3, 16, 16))  # norms with statistics, a gauge with borders
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "storage"), [*((name, storage) for name in METHODS for storage in (None, "int8")), ("plain", "float16")]
)
def test_the_same_net_loads_from_fewer_bytes(name, storage, tmp_path):
    net, notes = made(name), {"classes": ["é", "b", "c"], "mean": [0.5] * 3}
    sizes = [
        pc.save(net, tmp_path / f"{kind}.safetensors", storage=storage, notes=notes, packed=kind == "packed")
        for kind in ("ordinary", "packed")
    ]
    assert sizes[1] < 0.97 * sizes[0] - 4000
    assert sizes[1] == (tmp_path / "packed.safetensors").stat().st_size
    one, other = (pc.load(tmp_path / f"{kind}.safetensors") for kind in ("ordinary", "packed"))
    tensors = distinct_tensors(other)
    for key, tensor in distinct_tensors(one).items():
        assert tensor.dtype == tensors[key].dtype
        assert tensor.equal(tensors[key]), key
    x = torch.randn(2, 3, 16, 16)
    assert one(x).equal(other(x))
    headers = [checkpoint.read_header(tmp_path / f"{kind}.safetensors") for kind in ("ordinary", "packed")]
    assert headers[0] == headers[1]


def test_zeros_masks_whole_numbers_and_other_types(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.short = nn.Conv2d(3, 40, 3), nn.Linear(40, 5).to(torch.bfloat16)
            self.register_buffer("table", torch.arange(-3, 9).view(3, 4))
            self.register_buffer("flags", torch.tensor([True, False, True]))
            self.register_buffer("nothing", torch.zeros(0, 4))
            self.register_buffer("number", torch.tensor(2.5, dtype=torch.float64))
            self.register_buffer("wave", torch.randn(3, dtype=torch.complex64))

    net = Odd()
    prune_(net, 0.8, ["conv.weight"])
    path = tmp_path / "net.safetensors"
    pc.save(net, path, packed=True)
    assert all(t.equal(distinct_tensors(net)[k]) for k, t in distinct_tensors(pc.load(path, base=Odd())).items())
    net.short.float()
    pc.save(net, path, packed=True, storage="int8")
    zeros = pc.load(path, base=Odd()).conv.weight == 0
    assert zeros.equal(net.conv.weight == 0)


@pytest.mark.parametrize(("low", "high", "bits"), [(-1, 1, 1.6), (-2, 1, 2.02), (-8, 7, 4.02), (-9, 9, 4.5)])
def test_whole_numbers_that_lie_close_together_take_few_bits(low, high, bits, tmp_path):
    net, path = nn.Sequential(nn.Linear(500, 300, bias=False)), tmp_path / "net.safetensors"
    numbers = torch.randint(low, high + 1, (300, 500))
    numbers[:, 0] = high
    net[0].weight = nn.Parameter(0.25 * numbers.float())
    size = pc.save(net, path, storage="int8", packed=True)
    assert size < 300 * 500 * bits / 8 + 900
    assert pc.load(path, base=nn.Sequential(nn.Linear(500, 300, bias=False)))[0].weight.equal(net[0].weight)


@pytest.mark.parametrize("name", METHODS)
def test_norms_of_two_numbers_give_the_same_outputs(name, tmp_path):
    net, x = made(name), torch.randn(4, 3, 16, 16)
    before = {key: tensor.clone() for key, tensor in distinct_tensors(net).items()}
    sizes = {}
    for norms in ("exact", "float16", "folded"):
        path = tmp_path / f"{norms}.safetensors"
        sizes[norms] = pc.save(net, path, packed=True, norms=norms)
        y = pc.load(path)(x)
        torch.testing.assert_close(y, net(x), atol=0 if norms == "exact" else 0.01 * float(net(x).abs().max()), rtol=0)
    assert sizes["folded"] < sizes["float16"] < sizes["exact"]
    assert all(tensor.equal(before[key]) for key, tensor in distinct_tensors(net).items()), "the net is left alone"


def test_folding_alone_rounds_no_more_than_float32():
    net = made("plain").double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    wanted = net(x)
    lighten_(net, "folded")
    norm = net.layer1[0].bn1
    assert norm.running_mean.abs().max() == 0
    assert norm.weight.equal(norm.weight.half().double()) or norm.weight.abs().min() < 1e-4
    assert (net(x) - wanted).abs().max() < 0.01 * wanted.abs().max()
    with pytest.raises(ValueError, match="no norms 'none'; known: exact, float16, folded"):
        lighten_(net, "none")


def test_seeds_stay_hidden_and_notes_are_replaced(tmp_path):
    path, net = tmp_path / "net.safetensors", made("ring")
    pc.save(net, path, packed=True, passphrase="open", notes={"data": "a"})
    with pytest.raises(MissingPassphrase):
        pc.load(path)
    before = path.stat().st_size
    checkpoint.replace_notes_(path, {"data": "b" * 100})
    assert checkpoint.read_header(path)["notes"] == {"data": "b" * 100}
    assert 0 < path.stat().st_size - before < 40, "of equal letters"
    x = torch.randn(1, 3, 16, 16)
    assert pc.load(path, passphrase="open")(x).equal(net(x))


def test_older_versions_say_that_they_do_not_know_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "VERSION", 2)
    with pytest.raises(NewerFormat, match="format version 3, this pocketcnn reads up to 2; upgrade"):
        check_header('{"format":"pocketcnn","version":3}', tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", ["plain", "windows", "pde"])
@pytest.mark.parametrize("how", [{}, {"packed": True}, {"storage": "int8", "packed": True}])
def test_the_ledger_adds_up_to_the_file(name, how, tmp_path):
    net, path = made(name), tmp_path / "net.safetensors"
    size = pc.save(net, path, **how)
    found = checkpoint.ledger(path, net)
    assert found.total == sum(found.by_kind().values()) == sum(found.by_module().values()) == size
    assert all(length >= 0 for length in found.tensors.values())
    assert ("codes" in found.by_kind()) == (name == "windows")
    assert {"norms", "first layer", "last layer", "names and description"} <= found.by_kind().keys()
    assert str(found).splitlines()[-1].split() == ["all", f"{size:,}", "100", "%"]


@contextlib.contextmanager
def at_most(length):
    """Fails if Python takes more bytes inside of a `with`."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < length


def unsealed(path):
    """The content of a file without its checksum."""
    content = path.read_bytes()
    start = read_head(path).start
    head = json.loads(content[8:start])
    del head["__metadata__"][CHECKSUM]
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]


def test_damaged_files_are_refused(tmp_path):
    path, bad = tmp_path / "net.safetensors", tmp_path / "bad.safetensors"
    pc.save(made("windows"), path, packed=True, storage="int8")
    content, plain = path.read_bytes(), unsealed(path)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        place = int(torch.randint(8, len(content), (1,), generator=generator))
        bad.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises((BrokenFile, pc.errors.ForeignFile)):
            pc.load(bad)
        bad.write_bytes(content[:place])
        with pytest.raises(BrokenFile):
            pc.load(bad)
        place = min(place, len(plain) - 1)
        bad.write_bytes(plain[:place] + bytes([plain[place] ^ 255]) + plain[place + 1 :])
        with contextlib.suppress(pc.errors.PocketError):  # without a checksum a flipped weight is a weight
            pc.load(bad)


def changed(path, **changes):
    """A packed file with another description or other streams."""
    content = packed.open_packed(path, read_head(path))
    described = dataclasses.replace(content.description, **{k: v for k, v in changes.items() if k != "streams"})
    streams = changes.get("streams", content.blob.streams)
    path.write_bytes(seal(packed.serialized(described, streams), {"pocketcnn": packed.outer()}))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda c: {"types": c.description.types[:-1]}, "tensors do not fit"),
        (lambda c: {"types": "!" * len(c.description.types)}, "tensors do not fit"),
        (lambda c: {"types": "x" * len(c.description.types)}, "is stored as U64, and must be"),
        (lambda c: {"types": c.description.types.replace("f", "#")}, "numbers below a limit|cut off"),
        (lambda c: {"more": {"storage.scales": 10**12}}, "tensors do not fit"),
        (lambda c: {"more": {"conv1.weight": 10**12}}, "far more than it can hold"),
        (lambda c: {"more": {"conv1.weight": 2**63}}, "description of the net is damaged"),
        (lambda c: {"more": {"a.b": 3}, "types": c.description.types + "#"}, "tensors do not fit"),
        (lambda c: {"names": "0" * 16}, "other names or shapes"),
        (lambda c: {"streams": c.blob.streams[:-1]}, "cut off"),
        (lambda c: {"streams": [*c.blob.streams, b""]}, "left over"),
        (lambda c: {"streams": [s[::-1] for s in c.blob.streams]}, "damaged"),
        (lambda c: {"header": {**c.description.header, "steps": "none"}}, "description of the net is damaged"),
        (lambda c: {"header": {}}, "description of the net is damaged"),
    ],
)
def test_lying_files_are_refused(lie, message, tmp_path):
    path = tmp_path / "net.safetensors"
    pc.save(made("windows"), path, packed=True)
    changed(path, **lie(packed.open_packed(path, read_head(path))))
    with pytest.raises(BrokenFile, match=message):
        pc.load(path)


def test_a_small_file_of_a_huge_net_takes_no_memory(tmp_path):
    path = tmp_path / "net.safetensors"
    pc.save(made("plain"), path, packed=True)
    header = checkpoint.read_header(path)
    header["base"]["options"]["width"] = 60.0
    with torch.device("meta"):
        huge = pc.create_model("resnet20", **header["base"]["options"])
    changed(path, header=header, names=packed._hash_of(distinct_tensors(huge)))
    with at_most(30_000_000), pytest.raises(BrokenFile, match="far more than it can hold"):
        pc.load(path)


def test_what_cannot_be_packed(tmp_path):
    net = nn.Linear(4, 4)
    net.register_buffer("wave", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(CannotWrite, match=r"wave is of torch.complex128, which no packed file holds"):
        pc.save(net, tmp_path / "net.safetensors", packed=True)
    with torch.no_grad():
        net = nn.Linear(3000, 1000)
        net.weight.zero_()
    with pytest.raises(CannotWrite, match="nearly equal numbers"):
        pc.save(net, tmp_path / "net.safetensors", packed=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CannotWrite, match="no folder"):
        pc.save(net, tmp_path / "nowhere" / "net.safetensors", packed=True)


def test_a_packed_file_loads_only_into_a_net_of_its_form(tmp_path):
    class Two(nn.Module):
        def __init__(self, names=("enc", "dec"), shape=(4, 6)):
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(*shape))

    path, net = tmp_path / "net.safetensors", Two()
    pc.save(net, path, packed=True)
    assert pc.load(path, base=Two()).dec.weight.equal(net.dec.weight)
    for other in (Two(("dec", "enc")), Two(("enc", "renamed")), Two(shape=(6, 4)), Two(("enc",))):
        with pytest.raises(BrokenFile, match="other names or shapes"):
            pc.load(path, base=other)
        with pytest.raises(BrokenFile, match="other names or shapes"):
            checkpoint.ledger(path, other)


def test_tied_weights_load_into_a_base_that_ties_them(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    for how in ({}, {"packed": True}):
        net, path = Tied(), tmp_path / "net.safetensors"
        pc.save(net, path, **how)
        again = pc.load(path, base=Tied())
        assert again.b.weight is again.a.weight
        assert again.b.weight.equal(net.a.weight)


def test_notes_that_json_can_hold_are_packed(tmp_path):
    path = tmp_path / "net.safetensors"
    notes = {"classes": ["caf\udce9", "\u00e9"], "n": 2**70, "nan": 1e400}
    for how in ({}, {"packed": True}):
        pc.save(nn.Linear(2, 2), path, notes=notes, **how)
        assert checkpoint.read_header(path)["notes"] == notes
        checkpoint.replace_notes_(path, {**notes, "more": -(2**64)})
        assert checkpoint.read_header(path)["notes"]["more"] == -(2**64)


def test_norms_that_share_numbers_or_make_them_are_left_alone(tmp_path):
    shared = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))  # fmt: skip
    shared[3].weight, shared[3].bias = shared[1].weight, shared[1].bias
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.uniform_(made[1].weight)
    torch.nn.utils.parametrizations.weight_norm(made[1], "weight", dim=0)
    for net in (shared, made):
        net.train()(3 * torch.randn(16, 3, 12, 12))
        net.eval().requires_grad_(False)
        x = torch.randn(2, 3, 12, 12)
        wanted = net(x)
        lighten_(net, "folded")
        torch.testing.assert_close(net(x), wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)
    assert shared[5].running_mean.abs().max() == 0 < shared[3].running_mean.abs().max()


def test_descriptions_and_codes_that_would_swell_take_little_memory(tmp_path):
    path = tmp_path / "net.safetensors"
    pc.save(made("plain"), path, packed=True)
    size = path.stat().st_size
    changed(path, header={**checkpoint.read_header(path), "notes": {"a": [[]] * 2_600_000}})
    assert path.stat().st_size < size + 20_000
    with at_most(2_000_000), pytest.raises(BrokenFile, match="bytes of description in a file of"):
        checkpoint.read_header(path)
    stored = coding.write_numbers(torch.zeros(1_000_000, dtype=torch.long), 30_000)
    with at_most(30_000_000):
        coding.read_numbers(stored, 1_000_000, 30_000)
