import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import BrokenFile, CannotWrite, ForeignFile, MissingBase, MissingPassphrase, NewerFormat


@pytest.fixture
def small():
    net = pc.condense(pc.create_model("resnet20"), "ring", size=0.1, seed=7)
    return net.eval()


def test_loads_in_a_new_process_with_equal_bits(small, tmp_path):
    pc.save(small, tmp_path / "small.safetensors")
    x = torch.randn(2, 3, 16, 16)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, hashlib, pocketcnn as pc; torch.set_num_threads(1); folder = sys.argv[1];"
        "y = pc.load(folder + '/small.safetensors')(torch.load(folder + '/x.pt'));"
        "print(hashlib.sha256(y.detach().numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    import hashlib

    assert done.stdout.strip() == hashlib.sha256(small(x).detach().numpy().tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_net_in_a_new_process():
    code = (
        "import torch, hashlib, pocketcnn as pc; torch.manual_seed(3);"
        "net = pc.condense(pc.create_model('resnet20'), 'ring', size=0.1, seed=7);"
        "print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in pc.materialize(net).state_dict().values())).hexdigest())"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in (1, 2)]
    assert run[0].stdout == run[1].stdout != ""


def test_file_of_a_ring_net_holds_the_ring_once_and_no_index(small, tmp_path):
    size = pc.save(small, tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        names = list(file.keys())
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        kinds = {file.get_slice(name).get_dtype() for name in names}
    assert sum(name.endswith("ring.values") for name in names) == 1
    assert not [name for name in names if "indices" in name or "signs" in name]
    assert kinds == {"F32", "I64"}
    assert all(shape == [] for name, shape in shapes.items() if name.endswith("num_batches_tracked"))
    assert size == (tmp_path / "small.safetensors").stat().st_size


def test_ten_percent_ring_of_resnet18_is_within_two_percent_of_its_numbers(tmp_path):
    net = pc.create_model("resnet18_ring", num_classes=10, stem="small", size=0.1)
    size = pc.save(net, tmp_path / "ring.safetensors")
    assert size == pytest.approx(4 * pc.measure(net).total_params, rel=0.02)


def test_recipes_with_several_steps_and_notes_travel(tmp_path):
    net = pc.create_model("rednet26", num_classes=4, width=0.5)
    for _ in range(20):  # involution is quadratic in its input: batch norm must have seen images, or it overflows
        net(torch.randn(4, 3, 33, 47))
    net.eval()
    pc.save(net, tmp_path / "net.safetensors", notes={"mean": [0.5]})
    x = torch.randn(1, 3, 33, 47)
    loaded = pc.load(tmp_path / "net.safetensors")
    assert torch.equal(loaded(x), net(x))
    assert not loaded.training
    assert pc.checkpoint.read_header(tmp_path / "net.safetensors")["notes"] == {"mean": [0.5]}


def test_where_and_patterns_are_stored_as_names(tmp_path):
    net = pc.condense(pc.create_model("resnet20"), "ring", where=lambda module, name: "layer2" in name).eval()
    pc.save(net, tmp_path / "net.safetensors")
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(pc.load(tmp_path / "net.safetensors")(x), net(x))


def test_foreign_nets_need_their_base(tmp_path):
    class Foreign(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.LazyLinear(2))

    base = Foreign()
    base(torch.randn(1, 3, 8, 8))
    net = pc.condense(base, "ring").eval()
    pc.save(net, tmp_path / "net.safetensors")
    with pytest.raises(MissingBase, match="pass a fresh plain one as base=net"):
        pc.load(tmp_path / "net.safetensors")
    fresh = Foreign()
    fresh(torch.randn(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(pc.load(tmp_path / "net.safetensors", base=fresh)(x), net(x))
    with pytest.raises((BrokenFile, ValueError), match=r"no such layer|do not fit"):
        pc.load(tmp_path / "net.safetensors", base=nn.Sequential(nn.Linear(2, 2)))


def test_unusable_files_say_what_they_are(small, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="no such model file"):
        pc.load(path)
    pc.save(small, path)
    whole = path.read_bytes()
    for length in (0, 5, 400, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises((BrokenFile, ForeignFile), match=r"damaged or cut short|not a safetensors file"):
            pc.load(path)
    path.write_bytes(b"PK\x03\x04 a pickle in a zip, say")
    with pytest.raises(ForeignFile, match="not a safetensors file"):
        pc.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ForeignFile, match=r"not written by pocketcnn\.save"):
        pc.load(path)
    header = {"format": "pocketcnn", "version": 99, "base": None, "steps": [], "frozen": [], "notes": {}}
    save_file({"weight": torch.zeros(3)}, path, metadata={"pocketcnn": json.dumps(header)})
    with pytest.raises(NewerFormat, match="format version 99, this pocketcnn reads up to 3; upgrade"):
        pc.load(path)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "not json",
        '{"version": 1}',
        '{"version": "one"}',
        '{"version": 1, "base": {}, "steps": [], "frozen": [], "notes": {}}',
    ],
)
def test_tampered_descriptions_are_reported(header, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "net.safetensors", metadata={"pocketcnn": header})
    with pytest.raises(BrokenFile, match=r"net\.safetensors: its description of the net is damaged"):
        pc.load(tmp_path / "net.safetensors")


def test_a_net_that_cannot_be_rebuilt_names_the_file(tmp_path):
    header = {"version": 1, "base": {"name": "resnet999", "options": {}}, "steps": [], "frozen": [], "notes": {}}
    save_file({"w": torch.zeros(3)}, tmp_path / "net.safetensors", metadata={"pocketcnn": json.dumps(header)})
    with pytest.raises(
        BrokenFile, match=r"net\.safetensors: the net it describes cannot be rebuilt: no model 'resnet999'"
    ):
        pc.load(tmp_path / "net.safetensors")


def test_dtype_frozen_layers_and_the_random_state_are_kept(tmp_path):
    net = pc.create_model("resnet20", width=0.25).double().eval()
    net.layer1.requires_grad_(False)
    pc.save(net, tmp_path / "net.safetensors")
    state = torch.random.get_rng_state()
    loaded = pc.load(tmp_path / "net.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    assert torch.equal(loaded(x), net(x))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in net.parameters()]
    pc.save(torch.compile(net), tmp_path / "compiled.safetensors")
    assert torch.equal(pc.load(tmp_path / "compiled.safetensors")(x), net(x))


def test_a_changed_net_does_not_load_silently(small, tmp_path):
    small.fc = nn.Linear(64, 3)
    pc.save(small, tmp_path / "net.safetensors")
    with pytest.raises(BrokenFile, match=r"fc\.weight is \[3, 64\] in the file, \[10, 64\] in the net"):
        pc.load(tmp_path / "net.safetensors")


def test_full_disk_keeps_the_old_file(small, tmp_path):
    """Sets a real limit on file size: the write fails half-way, the old file still loads, and no other file is left."""
    path = tmp_path / "net.safetensors"
    pc.save(small, path)
    before = path.read_bytes()
    code = (
        "import resource, sys, pocketcnn as pc; net = pc.create_model('resnet20');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); pc.save(net, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "CannotWrite" in done.stderr
    assert "the file that was there is unchanged" in done.stderr
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_folder_that_is_not_there(small, tmp_path):
    with pytest.raises(CannotWrite, match="there is no folder"):
        pc.save(small, tmp_path / "nowhere" / "net.safetensors")


def test_a_file_of_the_first_version_still_loads():
    """Loads a file of version 0.1.0, a 10 % ring over a narrow resnet20, and compares the logits with those it gave."""
    folder = Path(__file__).parents[1] / "golden"
    net = pc.load(folder / "ring_v1.safetensors")
    expected = torch.tensor(json.loads((folder / "ring_v1.json").read_text()))
    x = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


SECRET = 0x1234_5678_9ABC_DEF0


@pytest.fixture
def secret():
    return pc.condense(pc.create_model("resnet20", width=0.5), "ring", size=0.1, seed=SECRET).eval()


def test_a_passphrase_hides_the_seed(secret, tmp_path):
    pc.save(secret, tmp_path / "net", passphrase="open sesame")
    x = torch.randn(2, 3, 16, 16)
    loaded = pc.load(tmp_path / "net", passphrase="open sesame")
    assert torch.equal(loaded(x), secret(x))
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in secret.state_dict().items())
    content = (tmp_path / "net").read_bytes()
    assert str(SECRET).encode() not in content
    assert b"open sesame" not in content
    wrong = pc.load(tmp_path / "net", passphrase="open simsim")
    assert not torch.allclose(wrong(x), secret(x), atol=0.1)
    with pytest.raises(MissingPassphrase, match=r"saved with a passphrase; pass it as load\(path, passphrase"):
        pc.load(tmp_path / "net")
    with pytest.raises(MissingPassphrase, match="saved with a passphrase"):
        pc.load(tmp_path / "net", passphrase="")
    pc.save(secret, tmp_path / "other", passphrase="open sesame")
    assert read_steps(tmp_path / "net") != read_steps(tmp_path / "other"), "each file has a salt of its own"
    pc.save(loaded, tmp_path / "plain")
    assert read_steps(tmp_path / "plain")[0]["options"]["seed"] == SECRET, "the net itself keeps its seed"


def read_steps(path):
    return pc.checkpoint.read_header(path)["steps"]


def test_several_seeds_are_hidden_apart(tmp_path):
    net = pc.condense(pc.create_model("resnet20", width=0.25), "ring", include="layer1.*", seed=SECRET)
    net = pc.condense(net, "ring", include="layer2.*", seed=SECRET).eval()
    pc.save(net, tmp_path / "net", passphrase="p")
    one, other = (step["options"]["seed"] for step in read_steps(tmp_path / "net"))
    assert len({one, other, SECRET}) == 3
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(pc.load(tmp_path / "net", passphrase="p")(x), net(x))


def test_passphrases_that_make_no_sense(secret, tmp_path, caplog):
    with pytest.raises(ValueError, match="an empty passphrase protects nothing"):
        pc.save(secret, tmp_path / "net", passphrase="")
    with pytest.raises(ValueError, match="this net has none"):
        pc.save(pc.create_model("resnet20"), tmp_path / "net", passphrase="p")
    reuse = pc.condense(pc.create_model("resnet20", width=0.25), "ring", scheme="identity", seed=SECRET)
    with pytest.raises(ValueError, match="this net has none that matters"):
        pc.save(reuse, tmp_path / "net", passphrase="p")
    pc.save(secret, tmp_path / "net")
    with pytest.raises(ValueError, match="saved without a passphrase; leave it out"):
        pc.load(tmp_path / "net", passphrase="p")
    assert "can be found by trying" not in caplog.text
    weak = pc.condense(pc.create_model("resnet20", width=0.25), "ring", seed=7)
    pc.save(weak, tmp_path / "net", passphrase="p")
    assert "a seed below 2**32 can be found by trying" in caplog.text


def test_a_damaged_key_is_reported(secret, tmp_path):
    pc.save(secret, tmp_path / "net", passphrase="p")
    for change in ({"salt": "xyz"}, {"n": 1 << 30}, {"r": "many"}):
        header = pc.checkpoint.read_header(tmp_path / "net")
        rewrite(tmp_path / "net", tmp_path / "bad", {**header, "key": {**header["key"], **change}})
        with pytest.raises(
            BrokenFile, match=r"description of the net is damaged: .* at key\.[srn].*; copy or train it again"
        ):
            pc.load(tmp_path / "bad", passphrase="p")


def rewrite(path, target, header):
    """Replaces the header of a file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    save_file(tensors, target, metadata={"pocketcnn": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (dict(scheme="spiral"), "no ring scheme 'spiral'"),
        (dict(level="galaxy"), "no level 'galaxy'"),
        (dict(twist=3), "ring has no option 'twist'"),
    ],
)
def test_options_of_a_newer_version_are_reported(secret, tmp_path, change, what):
    pc.save(secret, tmp_path / "net")
    header = pc.checkpoint.read_header(tmp_path / "net")
    header["steps"][0]["options"].update(change)
    rewrite(tmp_path / "net", tmp_path / "newer", header)
    with pytest.raises(NewerFormat, match=f"does not know how the net was condensed .*{what}.*upgrade pocketcnn"):
        pc.load(tmp_path / "newer")
