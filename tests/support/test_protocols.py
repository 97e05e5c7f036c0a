"""The layers and nets of the package offer what the protocols write down, and an ordinary layer offers none of it."""

import pytest
from torch import nn

import pocketcnn as pc
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.involution import Involution2d
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.methods.puppet import Gauge, PuppetStage
from pocketcnn.methods.puppet.gauge import Calls
from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.support import protocols
from pocketcnn.support.protocols import gauge_of, is_condensed

OFFERS = {
    "CountsMacs": (lambda: Involution2d(16, 16, 3), lambda: GlobalLayer(4)),
    "FoldsNorms": (lambda: GlobalLayer(4),),
    "HasDense": (lambda: RingConv2d(4, 4, 3), lambda: PuppetStage([nn.Conv2d(4, 4, 3, padding=1)], depth="fixed")),
    "LearnsFromImages": (Gauge,),
    "Listener": (Calls,),
    "LooksAtEntropy": (lambda: PuppetStage([nn.Conv2d(4, 4, 3, padding=1)]),),
    "MakesKernel": (lambda: RingConv2d(4, 4, 3), lambda: CondConv2d(4, 4, 3), lambda: Involution2d(16, 16, 3)),
    "NamesWeights": (lambda: ParameterRing([(4, 4, 3, 3)]),),
    "SetsDepth": (Gauge,),
    "TakesImages": (lambda: pc.create_model("mnist_net"),),
}


@pytest.mark.parametrize("name", OFFERS)
def test_who_offers_what(name):
    protocol = getattr(protocols, name)
    for make in OFFERS[name]:
        assert isinstance(make(), protocol)
    assert not isinstance(nn.Conv2d(4, 4, 3), protocol)


def test_condensed_modules_and_the_gauge_of_a_net():
    net = pc.create_model("resnet20")
    assert gauge_of(net) is None
    assert not any(map(is_condensed, net.modules()))
    small = pc.condense(net, "puppet")
    assert isinstance(gauge_of(small), Gauge)
    assert [module.condensed_by for module in small.modules() if is_condensed(module)] == ["puppet"] * 3
