import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.surgery import as_served


def small(method):
    net = pc.condense(pc.create_model("resnet20", num_classes=10, width=0.25), method)
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))  # batch norms that change something
    return net.eval()


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("method", ["ring", "condconv"])
def test_outputs_are_equal_and_the_net_is_left_alone(method, fold):
    """A ring's kernels are exact as ordinary ones; those of CondConv depend on the image, and stay."""
    net = small(method)
    before, x = norms(net), torch.randn(2, 3, 32, 32)
    served = as_served(net, fold=fold)
    with torch.no_grad():
        torch.testing.assert_close(served(x), net(x), rtol=1e-4, atol=1e-4)
    assert norms(net) == before
    assert (norms(served) < before) is fold
    condensed = any(getattr(module, "condensed_by", None) for module in served.modules())
    assert condensed is (method == "condconv")
    assert (served is net) is (method == "condconv" and not fold)
