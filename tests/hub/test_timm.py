"""Our nets in timm's registry; these tests run where timm is installed."""

import copy
import importlib
import sys

import pytest
import torch

import pocketcnn as pc
from pocketcnn import zoo
from pocketcnn.errors import MissingExtra, UnknownPretrained
from pocketcnn.hub import timm as timm_models


@pytest.fixture(scope="module")
def names(timm):
    return timm_models.register()


def test_every_net_is_listed_and_hides_none(timm, names):
    assert {f"pocketcnn_{name}" for name in pc.list_models()} <= set(names)
    assert timm.list_models("*pocketcnn*") == names == timm_models.register()
    tagged = [f"pocketcnn_{card.name}.{card.data}" for card in zoo.cards()]
    assert sorted(timm.list_pretrained("pocketcnn_*")) == sorted(tagged)
    assert "resnet18" in timm.list_models("resnet18")


def test_makes_what_create_model_makes(timm, names):
    torch.manual_seed(3)
    ours = pc.create_model("resnet18_ring", width=0.1, size=0.2, num_classes=5, in_channels=1)
    torch.manual_seed(3)
    theirs = timm.create_model("pocketcnn_resnet18_ring", width=0.1, size=0.2, num_classes=5, in_chans=1, drop_rate=0.0)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert theirs.num_classes == 5
    assert theirs.default_cfg["architecture"] == "pocketcnn_resnet18_ring"


def test_every_small_net_can_be_made(timm, names):
    for name in ("equilibrium", "mnist_net", "plainnet20", "puppet_plain", "resnet32_global"):
        assert timm.create_model(f"pocketcnn_{name}", num_classes=3).num_classes == 3


def test_trained_weights_are_those_of_the_package(timm, names):
    from timm.data import resolve_data_config

    x = torch.randn(2, 3, 32, 32)
    for name in ("pocketcnn_resnet20_ring28", "pocketcnn_resnet20_ring28.cifar10"):
        net = timm.create_model(name, pretrained=True)
        assert net.training
        assert torch.equal(net.eval()(x), pc.create_model("resnet20_ring28", pretrained="cifar10")(x))
    notes = pc.checkpoint.read_header(zoo.path_of(zoo.find("resnet20_ring28", "cifar10")))["notes"]
    found = resolve_data_config({}, model=net)
    assert (found["input_size"], found["mean"], found["std"]) == tuple(
        tuple(notes[k]) for k in ("input_size", "mean", "std")
    )
    fresh = timm.create_model("pocketcnn_resnet20_ring28", num_classes=3)
    assert fresh(x).shape == (2, 3)
    assert len(fresh.provenance.steps) == 1


def test_what_is_known_of_a_net_fits_it(timm, names):
    grey = timm.create_model("pocketcnn_resnet20", in_chans=1, num_classes=4).default_cfg
    trained = timm.create_model("pocketcnn_resnet20").default_cfg
    assert grey["input_size"] == (1, 32, 32)
    assert grey["mean"] == pytest.approx([sum(trained["mean"]) / 3])
    assert len(grey["std"]) == 1
    assert grey["label_names"] is None
    assert len(trained["label_names"]) == 10


def test_what_the_module_offers_is_there(names):
    assert timm_models.__all__ == ["PREFIX", "register"]


def test_a_trained_net_gets_a_new_classifier_and_its_file_knows(timm, names, tmp_path):
    net = timm.create_model("pocketcnn_resnet20", pretrained=True, num_classes=4).eval()
    trained = pc.create_model("resnet20", pretrained="cifar10")
    assert torch.equal(net.layer3[2].conv2.weight, trained.layer3[2].conv2.weight)
    pc.save(net, tmp_path / "new.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(pc.load(tmp_path / "new.safetensors")(x), net(x))
    assert net(x).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet56", {"pretrained": True}, UnknownPretrained, "no trained net 'resnet56'; did you mean 'resnet20'"),
        ("resnet20.mnist", {"pretrained": True}, UnknownPretrained, "'resnet20' was trained on: cifar10"),
        ("resnet20", {"pretrained": True, "in_chans": 1}, ValueError, "its in_channels is 3"),
        ("resnet20.mnist", {}, UnknownPretrained, "'resnet20' was trained on: cifar10"),
        ("resnet20", {"num_classes": 0}, ValueError, "num_classes=0 asks for a net without classifier"),
        ("resnet20", {"pretrained_cfg": {"file": "x"}}, ValueError, "leave out the configuration of others"),
        ("resnet20", {"pretrained_cfg_overlay": {"file": "x"}}, ValueError, "leave out the configuration of others"),
        ("resnet20", {"features_only": True}, ValueError, "no option 'features_only'; it takes"),
    ],
)
def test_mistakes(timm, names, name, options, error, message):
    with pytest.raises(error, match=message):
        timm.create_model(f"pocketcnn_{name}", **options)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        MissingExtra, match=r"timm's registry needs timm, which is not installed; pip install 'pocketcnn\[timm\]'"
    ):
        timm_models.register()


def test_hints_tell_what_decays(timm, names, caplog):
    ring = timm.create_model("pocketcnn_resnet18_ring", width=0.1, num_classes=3)
    assert "timm's optimizers would not decay it" in caplog.text
    groups = (
        importlib.import_module("timm.optim")
        .create_optimizer_v2(
            ring, "sgd", lr=0.1, weight_decay=0.5, param_group_fn=lambda net: pc.train.parameter_groups(net, 0.5)
        )
        .param_groups
    )
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert all(id(p) in decayed for name, p in ring.named_parameters() if name.endswith("ring.values"))
    plain = timm.create_model("pocketcnn_resnet20", width=0.25)
    assert plain.no_weight_decay() == set()
    assert copy.deepcopy(ring).no_weight_decay() == set()
