import pytest
import torch

import pocketcnn as pc
from pocketcnn.train import parameter_groups

NETS = [
    ("plain", {}),
    ("ring", {}),
    ("ring", {"scheme": "windows", "gain": True, "level": "stage"}),
    ("puppet", {"start": "entropy"}),
    ("condconv", {"routing": "block"}),
    ("pde", {}),
    ("involution", {"group_channels": 2}),
]


@pytest.mark.parametrize(("method", "options"), NETS, ids=str)
def test_weights_decay_whatever_their_shape_and_nothing_else_does(method, options):
    net = pc.create_model("resnet20", width=0.25)
    if method != "plain":
        net = pc.condense(net, method, **options)
    decaying, others = parameter_groups(net, 0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    grouped = [*decaying["params"], *others["params"]]
    assert sorted(map(id, grouped)) == sorted(names), "each once"
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert sum(p.numel() for p in decaying["params"]) > 0.75 * sum(p.numel() for p in grouped)
    assert all(p.dim() == 1 or names[id(p)].endswith("bias") for p in others["params"])
    torch.optim.SGD([decaying, others], 1.0).step()


def test_a_ring_loses_as_much_as_its_kernels_would():
    net = pc.condense(pc.create_model("resnet20", width=0.25), "ring")
    before = net.layer1[0].conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(parameter_groups(net, 0.5), 0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(net.layer1[0].conv1.weight, 0.95 * before)


def test_frozen_parameters_are_in_no_group():
    net = pc.create_model("resnet20", width=0.25)
    net.fc.requires_grad_(False)
    assert all(p.requires_grad for group in parameter_groups(net, 0.1) for p in group["params"])
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups(net.requires_grad_(False), 0.1)
