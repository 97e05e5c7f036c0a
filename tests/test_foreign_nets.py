"""Surgery on nets of timm and torchvision, compared with the table in docs/nets.md; needs these two libraries."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import foreign
import pocketcnn as pc
from pocketcnn.support.files import read_json

ROOT = Path(__file__).parents[1]
RECORDS = read_json(ROOT / "results" / "foreign-nets" / "outcomes.json")
VERSIONS = RECORDS.pop("versions")


def numbers(name, method):
    """Largest number of trainable parameters in a trial, in millions."""
    return max(RECORDS[name].get(method, {}).get(key, 0) for key in ("before", "after")) / 1e6


def quick():
    """Two methods for each net, by turns, or its smallest trial where those take long; benchmarks/foreign_nets.py tries all."""
    methods = sorted(pc.METHODS)
    for turn, name in enumerate(name for name, net in foreign.NETS.items() if not net.slow):
        chosen = [methods[(turn + step) % len(methods)] for step in (0, 2)]
        small = [method for method in chosen if numbers(name, method) < 1.2]
        yield from ((name, method) for method in small or [min(methods, key=lambda other: numbers(name, other))])


QUICK = list(quick())


@pytest.mark.parametrize(("name", "method"), QUICK)
def test_a_method_makes_of_a_net_what_the_table_says(name, method, request):
    library = request.getfixturevalue(foreign.NETS[name].library)
    found = foreign.outcome(foreign.NETS[name], method)
    known = RECORDS[name].get(method)
    if known is not None and foreign.version(library) == VERSIONS[library.__name__]:
        assert found == known
    else:  # another version may have other nets, and a new method has no records
        assert "failure" not in found or "failure" in (known or {})


def test_the_table_is_made_of_the_records_and_long_enough():
    source = importlib.util.spec_from_file_location("foreign_nets", ROOT / "benchmarks" / "foreign_nets.py")
    script = importlib.util.module_from_spec(source)
    sys.modules[source.name] = script
    source.loader.exec_module(script)
    assert script.table(RECORDS) in (ROOT / "docs" / "nets.md").read_text(encoding="utf-8")
    assert list(RECORDS) == list(foreign.NETS)
    assert len({name for name, _ in QUICK}) >= 25


def test_what_fails_is_known():
    """Each entry here is a bug that somebody has examined; see docs/nets.md."""
    failures = {(n, m): o["failure"] for n, found in RECORDS.items() for m, o in found.items() if "failure" in o}
    assert failures == {
        ("edgenext_xx_small", "condconv"): "AttributeError: 'CondConv2d' object has no attribute 'weight'"
    }


def test_a_net_that_reads_a_weight_itself_keeps_that_layer(timm):
    net = timm.create_model("edgenext_xx_small", num_classes=7)
    small = pc.condense(net, "condconv", exclude="*.pos_embd.*")
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("mobilenetv3_large_100", ["blocks.2.1", "blocks.3.2", "blocks.5.1"]),
        ("efficientnet_b0", ["blocks.3.1", "blocks.4.1", "blocks.5.1"]),
        ("convnext_atto", ["stages.2.blocks.1"]),
    ],
)
def test_plans_of_global_layers_in_nets_of_timm_come_true(timm, name, replaced):
    net = timm.create_model(name, num_classes=7)
    plan = pc.plan(net, "pde", input_size=(3, 64, 64))
    assert plan.after == pc.measure(pc.condense(net, "pde"), (3, 64, 64))
    assert set(replaced) <= set(plan.replaced)


@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_large_100", "convnext_atto"])
def test_puppets_in_nets_of_timm(timm, name):
    net = timm.create_model(name, num_classes=7)
    plan = pc.plan(net, "puppet", input_size=(3, 32, 32))
    small = pc.condense(net, "puppet").eval()
    x = torch.rand(4, 3, 32, 32)
    x[1:3] = x[1:3, :, :1, :1]  # simple images among complex ones
    together = small(x)
    torch.testing.assert_close(together, torch.cat([small(image[None]) for image in x]), rtol=1e-3, atol=1e-4)
    assert plan.after == pc.measure(small, (3, 32, 32))
    assert plan.after.macs_min < plan.after.macs_max
