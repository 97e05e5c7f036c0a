"""Condensed nets as parts of larger nets: their files hold every step and seed, or are refused."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import pocketcnn as pc
from pocketcnn.errors import BrokenFile, CannotWrite
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.methods.ring import RingConv2d
from pocketcnn.support.modules import bare
from pocketcnn.surgery import provenance
from pocketcnn.train import TrainConfig, fit


def plain():
    return pc.create_model("resnet20", width=0.25)


def ring(seed=7, **options):
    return pc.condense(plain(), "ring", seed=seed, **options)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(10, 10)

    def forward(self, x):
        return self.head(self.backbone(x))


class Both(nn.Module):
    """Two parts under a name of two words; the second may be the first."""

    def __init__(self, one, other):
        super().__init__()
        self.parts = nn.ModuleDict({"left one": one, "right": other})

    def forward(self, x):
        return self.parts["left one"](x) + self.parts["right"](x)


def with_compiled_stage(net):
    net.layer2 = torch.compile(net.layer2, backend="eager")
    return net


def with_checkpointed_stage(net):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net.layer1 = checkpoint_wrapper(net.layer1)
    return net


def lightning(net):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    return Module()


def twice(net):
    return Both(net, net)


FORMS = {
    "whole": lambda net: net,
    "larger net": Detector,
    "larger net in a larger net": lambda net: nn.Sequential(nn.Identity(), Detector(net)),
    "Sequential": lambda net: nn.Sequential(net, nn.Linear(10, 3)),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "AveragedModel with buffers": lambda net: AveragedModel(net, use_buffers=True),
    "Lightning module": lightning,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled part": lambda net: Detector(torch.compile(net, backend="eager")),
    "compiled larger net": lambda net: torch.compile(Detector(net), backend="eager"),
    "compiled stage": with_compiled_stage,
    "compiled stage in a larger net": lambda net: Detector(with_compiled_stage(net)),
    "compiled twice": lambda net: torch.compile(Detector(torch.compile(net, backend="eager")), backend="eager"),
    "checkpointed stage": with_checkpointed_stage,
    "the same net twice": twice,
    "beside a plain one": lambda net: Both(net, plain()),
    "deep copy": lambda net: copy.deepcopy(Detector(net)),
    "pickled": lambda net: Detector(pickle.loads(pickle.dumps(net))),
}


def equal(net, other, x):
    """Compares outputs; compiled parts run as they are, because compiling takes seconds."""
    with torch.no_grad(), bare(net.eval()) as one, bare(other.eval()) as two:
        return torch.equal(one(x), two(x))


@pytest.mark.parametrize("form", FORMS)
def test_a_condensed_part_loads_on_a_plain_net_of_the_same_form(form, tmp_path):
    net = FORMS[form](ring())
    pc.save(net, tmp_path / "net")
    (step,) = pc.checkpoint.read_header(tmp_path / "net")["steps"]
    assert step["options"]["seed"] == 7
    assert all("_orig_mod" not in site for site in step["sites"])
    known = dict(net.named_modules())
    assert {site.startswith(step["part"]) for site in step["sites"]} == {True}
    loaded = pc.load(tmp_path / "net", base=FORMS[form](plain()))
    x = torch.randn(2, 3, 8, 8)
    assert equal(loaded, net, x)
    pc.save(loaded, tmp_path / "again")
    assert pc.checkpoint.read_header(tmp_path / "again")["steps"] == [step], "a loaded net knows its steps"
    # Condensed already and alike: taken as it is. With another seed: refused, never guessed.
    assert equal(pc.load(tmp_path / "net", base=FORMS[form](ring())), net, x)
    with pytest.raises(ValueError, match="with seed 8, in the file with 7; pass a plain net"):
        pc.load(tmp_path / "net", base=FORMS[form](ring(8)))
    assert len(known) == len(dict(net.named_modules())), "saving left the net alone"


@pytest.mark.parametrize("form", ["larger net", "DataParallel", "compiled", "compiled stage", "Sequential"])
def test_a_net_that_is_condensed_after_wrapping_loads(form, tmp_path):
    net = pc.condense(FORMS[form](plain()), "ring", seed=7)
    pc.save(net, tmp_path / "net")
    loaded = pc.load(tmp_path / "net", base=FORMS[form](plain()))
    assert equal(loaded, net, torch.randn(2, 3, 8, 8))


def test_a_compiled_stage_makes_no_difference_to_the_file(tmp_path):
    pc.save(pc.condense(with_compiled_stage(plain()), "ring", seed=7), tmp_path / "net")
    assert pc.load(tmp_path / "net").provenance.steps[0].options["seed"] == 7, "without a base, too"


@pytest.mark.parametrize("method", sorted(pc.METHODS))
def test_every_method_travels_in_a_part(method, tmp_path):
    def make():
        return pc.create_model("resnet20", width=0.5)

    net = Detector(pc.condense(make(), method))
    pc.save(net, tmp_path / "net")
    assert equal(pc.load(tmp_path / "net", base=Detector(make())), net, torch.rand(2, 3, 16, 16))


def test_steps_of_parts_and_of_the_whole_keep_their_order(tmp_path):
    """First a part is condensed, then the whole with another method, then another part, then the first part again."""

    def base():
        return Both(plain(), plain())

    net = base()
    net.parts["right"] = pc.condense(net.parts["right"], "ring", include="layer3.*", seed=3)
    net = pc.condense(net, "involution", include=["parts.right.layer2.*", "parts.left one.layer1.*"], group_channels=1)
    net.parts["left one"] = pc.condense(net.parts["left one"], "condconv", include="layer3.0.*")
    net.parts["right"] = pc.condense(net.parts["right"], "ring", include="layer1.*", seed=4)
    made = [(step.method, step.part) for step in provenance(net).steps]
    assert made == [
        ("ring", "parts.right"),
        ("involution", ""),
        ("condconv", "parts.left one"),
        ("ring", "parts.right"),
    ]
    pc.save(net, tmp_path / "net", passphrase="p")
    loaded = pc.load(tmp_path / "net", base=base(), passphrase="p")
    assert provenance(loaded) == provenance(net)
    assert equal(loaded, net, torch.randn(2, 3, 16, 16))
    half = base()
    half.parts["right"] = pc.condense(half.parts["right"], "ring", include="layer3.*", seed=3)
    assert equal(pc.load(tmp_path / "net", base=half, passphrase="p"), net, torch.randn(2, 3, 16, 16))


def test_options_mean_in_a_part_what_they_meant_in_the_net(tmp_path):
    options = dict(level={"layer[12]": "early", "layer3.*": "late"}, size={"early": 0.2, "late": 50}, seed=5)
    net = Detector(pc.condense(plain(), "ring", **options))
    pc.save(net, tmp_path / "net")
    assert equal(pc.load(tmp_path / "net", base=Detector(plain())), net, torch.randn(2, 3, 8, 8))


TAKEN = {
    "a stage": lambda small: nn.Sequential(small.layer1),
    "a layer": lambda small: small.layer1[0].conv1,
    "a stage in a named net": lambda small: setattr(net := plain(), "layer1", small.layer1) or net,
    "the net out of a condensed wrapper": lambda small: pc.condense(nn.DataParallel(plain()), "ring").module,
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_layer_without_its_record_is_refused(what, tmp_path, few):
    net = TAKEN[what](ring())
    with pytest.raises(
        CannotWrite, match=r"ring layer was taken out of the net that was condensed.*save that net, or condense"
    ):
        pc.save(net, tmp_path / "net")
    with pytest.raises(CannotWrite, match="ring layer was taken out"):
        fit(net, few, TrainConfig(epochs=1), tmp_path / "run")
    assert not list(tmp_path.glob("*/last.ckpt"))
    assert not (tmp_path / "net").exists()


def test_a_replaced_layer_and_folded_norms_are_refused_before_training(tmp_path, few):
    small = ring()
    small.layer1[0].conv1 = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(
        CannotWrite, match=r"layer1\.0\.conv1: ring put a layer here, but now there is a Conv2d.*exclude="
    ):
        pc.save(small, tmp_path / "net")
    folded = Detector(pc.fold_norm(plain()))
    for call in (lambda: pc.save(folded, tmp_path / "net"), lambda: fit(folded, few, TrainConfig(), tmp_path / "run")):
        with pytest.raises(CannotWrite, match="has batch norms folded"):
            call()


@pytest.mark.parametrize("method", ["ring", "puppet"])
def test_layers_that_no_longer_share_are_refused(method, tmp_path, few):
    net = pc.condense(pc.create_model("resnet20", in_channels=1, width=0.25), method)
    whole = copy.deepcopy(net)
    net.layer3 = copy.deepcopy(net.layer3)
    message = r"layer\S+ and \S+ no longer share what the method made for them"
    with pytest.raises(CannotWrite, match=message):
        pc.save(net, tmp_path / "net.safetensors")
    with pytest.raises(CannotWrite, match=message):
        fit(net, few, TrainConfig(epochs=1), tmp_path / "run")
    pc.save(whole, tmp_path / "whole.safetensors")  # a copy of the net shares as the net does


def by_another_stage(net, other):
    net.layer2 = other.layer2


def by_another_ring(net, other):
    net.layer1[0].conv1.ring = copy.deepcopy(net.layer1[0].conv1.ring)


def by_a_copy_of_the_only_stage(net, other):
    net.layer1 = copy.deepcopy(net.layer1)


@pytest.mark.parametrize(
    ("method", "options", "untie"),
    [("ring", {}, by_another_stage), ("puppet", {}, by_another_stage), ("ring", {}, by_another_ring),
     ("condconv", {"routing": "block"}, by_another_stage),
     ("puppet", {"include": "layer1.*", "measure": "features"}, by_a_copy_of_the_only_stage)],
)  # fmt: skip
def test_what_a_net_shares_is_what_its_steps_made(method, options, untie, tmp_path):
    def made():
        return pc.condense(pc.create_model("resnet20", in_channels=1, width=0.25), method, **options)

    net, path = made(), tmp_path / "net.safetensors"
    untie(net, made())
    if method == "condconv":  # its stages share nothing with one another
        pc.save(net, path)
        pc.load(path)
        return
    with pytest.raises(CannotWrite, match="no longer share what the method made for them"):
        pc.save(net, path)


def test_ordinary_layers_again_need_no_step(tmp_path):
    net = Detector(ring())
    dense = pc.materialize(net)
    pc.save(dense, tmp_path / "net")
    assert pc.checkpoint.read_header(tmp_path / "net")["steps"] == []
    assert equal(pc.load(tmp_path / "net", base=Detector(plain())), dense, torch.randn(2, 3, 8, 8))
    net.backbone = pc.materialize(net.backbone)
    pc.save(net, tmp_path / "net")
    assert pc.checkpoint.read_header(tmp_path / "net")["steps"] == []


def test_a_base_that_knows_more_than_the_file_is_refused(tmp_path):
    pc.save(Detector(plain()), tmp_path / "net")
    with pytest.raises(ValueError, match="by 'ring', and there is no such step in the file; pass a plain net"):
        pc.load(tmp_path / "net", base=Detector(ring()))
    pc.save(Detector(ring()), tmp_path / "net")
    with pytest.raises(ValueError, match="by 'condconv', in the file by 'ring'"):
        pc.load(tmp_path / "net", base=Detector(pc.condense(plain(), "condconv")))


class ByHand(nn.Module):
    """A net whose class makes condensed layers itself."""

    def __init__(self, seed=1, scheme="random", num_steps=5):
        super().__init__()
        self.conv = RingConv2d(3, 8, 3, padding=1, seed=seed, scheme=scheme)
        self.spread = GlobalLayer(8, num_steps=num_steps)

    def forward(self, x):
        return self.spread(self.conv(x))


@pytest.mark.parametrize("passphrase", [None, "p"])
def test_layers_that_a_class_makes_must_be_made_alike(passphrase, tmp_path):
    net = ByHand(seed=2**40)
    pc.save(net, tmp_path / "net", passphrase=passphrase)
    assert (str(2**40).encode() in (tmp_path / "net").read_bytes()) == (passphrase is None)
    assert equal(pc.load(tmp_path / "net", base=ByHand(2**40), passphrase=passphrase), net, torch.randn(1, 3, 8, 8))
    for change, words in (
        (dict(seed=2), f"conv was made otherwise: with seed 2, in the file with {2**40}"),
        (dict(seed=2**40, scheme="block"), "with scheme 'block', in the file with 'random'"),
        (dict(seed=2**40, num_steps=4), "spread was made otherwise: with num_steps 4, in the file with 5"),
    ):
        with pytest.raises(ValueError, match=words):
            pc.load(tmp_path / "net", base=ByHand(**change), passphrase=passphrase)


def test_a_layer_put_in_by_hand_needs_a_base_with_it(tmp_path):
    def make():
        net = plain()
        net.conv1 = RingConv2d(3, 4, 3, padding=1, bias=False, seed=3)
        return net

    net = make()
    pc.save(net, tmp_path / "net")
    with pytest.raises(BrokenFile, match="in only one of the two"):
        pc.load(tmp_path / "net")
    assert equal(pc.load(tmp_path / "net", base=make()), net, torch.randn(1, 3, 8, 8))


def test_a_trained_part_names_its_step(tmp_path, few):
    net = Detector(pc.condense(pc.create_model("resnet20", in_channels=1, width=0.25), "ring", seed=7))
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off")
    fit(net, few, config, tmp_path)
    (step,) = pc.checkpoint.read_header(tmp_path)["steps"]
    assert (step["part"], step["options"]["seed"]) == ("backbone", 7)
    base = Detector(pc.create_model("resnet20", in_channels=1, width=0.25))
    assert equal(pc.load(tmp_path, base=base), net, torch.rand(2, 1, 8, 8))
