"""Sensitivity: each place alone, in outputs and bytes."""

import copy

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import NothingToCondense
from pocketcnn.surgery import condense
from pocketcnn.surgery.fitting import recalibrate_


class Pair(nn.Module):
    """A net of two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(2, 8, 3)
        self.third, self.fourth = nn.Conv2d(16, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x, y):
        z = torch.relu(self.third(torch.cat([self.first(x), self.second(y)], 1)))
        return {"map": self.fourth(z), "mean": z.mean((2, 3))}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return pc.create_model("resnet20", width=0.25, in_channels=1).eval()


def test_each_place_is_condensed_alone(net):
    images = torch.randn(32, 1, 12, 12)
    found = pc.sensitivity(net, "ring", images, include="layer[12].*", scheme="windows", size=0.3)
    assert [row.name for row in found.rows] == pc.plan(net, "ring", include="layer[12].*").replaced
    row = found.rows[3]
    small = condense(net, "ring", include=row.name, scheme="windows", size=0.3, initialize="fit", images=images)
    trained = copy.deepcopy(net)
    recalibrate_(trained, images)
    with torch.no_grad():
        wanted, y = trained(images), small.eval()(images)
    assert row.error == pytest.approx(float((y - wanted).square().mean() / wanted.var(correction=0)), rel=1e-3)
    assert row.agreement == float((y.argmax(1) == wanted.argmax(1)).float().mean())
    weights = net.get_submodule(row.name).weight.numel()
    codes = -(-weights // 9)
    assert row.bytes_saved == 4 * weights - 4 * round(0.3 * weights) - 2 * codes - 4, "ring, codes and gain stay"
    worst = found.worst_first()
    assert worst[0].error / worst[0].bytes_saved == max(r.error / r.bytes_saved for r in found.rows)
    assert str(found).splitlines()[0] == "ring:scheme=windows,size=0.3, each place alone, 32 examples"
    assert str(found).splitlines()[2].startswith(worst[0].name)
    assert found.figure().startswith("<?xml")


@pytest.mark.parametrize("several", [False, True])
def test_what_new_statistics_alone_change_is_no_effect(net, several):
    """Statistics of other images would hide the effect of a place that loses nothing."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y):
            return self.net(x + y)

    images = 3 + torch.randn(64, 1, 12, 12)  # far from those of the net's statistics
    given = (Two(), (images, images)) if several else (net, images)
    found = pc.sensitivity(given[0], "ring", given[1], include="*layer2.1.*", size=1.0, scheme="identity")
    assert len(found.rows) == 2
    assert max(row.error for row in found.rows) < 1e-6
    assert {row.agreement for row in found.rows} == {1.0}


def test_a_net_of_several_inputs_and_outputs():
    found = pc.sensitivity(Pair(), "ring", (torch.randn(8, 1, 9, 9), torch.randn(8, 2, 9, 9)), size=0.2)
    assert [row.name for row in found.rows] == ["second", "third"]
    assert all(row.error > 0 and row.agreement is None for row in found.rows)


def test_what_cannot_be_compared(net):
    with pytest.raises(NothingToCondense, match="found no"):
        pc.sensitivity(nn.Sequential(nn.Linear(4, 4)), "ring", torch.randn(4, 4))
    for inputs, message in [
        (torch.randn(1, 1, 9, 9), "hold 1 examples; give two or more"),
        ((torch.randn(2, 1), torch.randn(3, 1)), "hold 2 and 3 examples"),
        (torch.full((2, 1, 9, 9), torch.nan), "not finite"),
        ("images", "inputs are a tensor, or a tuple"),
    ]:
        with pytest.raises(ValueError, match=message):
            pc.sensitivity(net, "ring", inputs)
