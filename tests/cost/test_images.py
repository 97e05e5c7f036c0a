"""Costs over a set of images, for nets whose depth depends on the image and for others."""

import numpy as np
import pytest
import torch

import pocketcnn as pc
from pocketcnn.cost.images import _microjoules
from pocketcnn.methods.puppet import gauge_of


def images(count=40):
    share = torch.linspace(0, 1, count)[:, None, None, None]
    return torch.rand(count, 3, 16, 16) * share + 0.4 * (1 - share)


def puppet(**options):
    return pc.condense(pc.create_model("resnet20", width=0.25), "puppet", **options).eval()


def test_images_are_counted_by_level():
    net = puppet()
    x = images()
    gauge_of(net).calibrate_([x])
    costs = pc.measure_images(net, x, runs=1, rounds=1)
    assert costs.images == 40
    assert [row.images for row in costs.levels] == gauge_of(net).levels_of(x).bincount(minlength=4).tolist()
    assert [row.depth for row in costs.levels] == [8, 14, 14, 20]
    macs = [row.macs for row in costs.levels]
    cost = pc.measure(net, (3, 16, 16))
    assert (macs[0], macs[-1]) == (cost.macs_min, cost.macs_max)
    assert macs[-1] == pc.measure(pc.create_model("resnet20", width=0.25), (3, 16, 16)).macs
    each = np.repeat(macs, [row.images for row in costs.levels])
    assert costs.macs.mean == pytest.approx(each.mean())
    assert (costs.macs.min, costs.macs.max) == (min(macs), max(macs))
    assert costs.latency_ms.min <= costs.latency_ms.mean <= costs.latency_ms.max
    ends = [(row.lowest, row.highest) for row in costs.levels]
    assert all(low <= high for low, high in ends)
    assert ends == sorted(ends)


def test_features_are_looked_at_where_the_net_has_them():
    net = puppet(measure="features").train()
    x = images(64)
    for _ in range(30):
        net(x)
    net.eval()
    gauge, seen = gauge_of(net), []
    net.layer1[0].register_forward_pre_hook(lambda m, args: seen.append(gauge.levels_of(args[0])))
    costs = pc.measure_images(net, x, runs=1, rounds=1)
    assert [row.images for row in costs.levels] == seen[0].bincount(minlength=4).tolist()


def test_other_nets_have_one_level():
    costs = pc.measure_images(pc.create_model("resnet20", width=0.25), images(5).split(2), runs=1, rounds=1)
    assert [row.images for row in costs.levels] == [5]
    assert costs.macs.min == costs.macs.mean == costs.macs.max == costs.levels[0].macs
    with pytest.raises(ValueError, match="no images to measure"):
        pc.measure_images(pc.create_model("resnet20"), images(5)[:0])


def test_the_bounds_do_not_depend_on_the_run():
    net = puppet()
    first = pc.measure(net, (3, 16, 16))
    assert first == pc.measure(net, (3, 16, 16))
    assert first.macs_min < first.macs_max
    assert pc.measure(puppet(depth="fixed"), (3, 16, 16)).macs_min is None
    assert first.macs_max == pc.measure(puppet(depth="fixed"), (3, 16, 16)).macs


def test_energy_counters_are_added_up_where_there_are_any(tmp_path):
    assert _microjoules(tmp_path) is None
    for name, value in (("intel-rapl:0", 5), ("intel-rapl:1", 7), ("intel-rapl:0:0", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert _microjoules(tmp_path) == 12
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert _microjoules(tmp_path) is None
