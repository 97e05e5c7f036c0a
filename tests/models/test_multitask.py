import pytest
import torch

from pocketcnn.models.multitask import TASKS, MultiTask


def test_each_task_has_an_answer():
    net = MultiTask(channels=3, num_classes=7, bottleneck=2).eval()
    classes, rebuilt, turns = net(torch.randn(5, 1, 28, 28), torch.randn(5, 1, 28, 28))
    assert classes.shape == (5, 7)
    assert rebuilt.shape == (5, 1, 28, 28)
    assert 0 <= rebuilt.min() <= rebuilt.max() <= 1
    assert turns.shape == (5, 4)


def test_encoders_are_alike_and_hold_no_head():
    net = MultiTask(channels=4)
    assert len(net.tasks) == len(TASKS)
    for encoder in net.tasks:
        # 3x3 kernels 1 -> 4 -> 8 -> 8 -> 8, batch norms of 4, 8, 8, 8
        assert sum(p.numel() for p in encoder.parameters()) == 9 * (4 + 32 + 64 + 64) + 2 * 28
        assert encoder(torch.randn(2, 1, 28, 28)).shape == (2, 8, 4, 4)
    names = {name.split(".")[0] for name, _ in net.named_parameters()}
    assert names == {"tasks", "classifier", "decoder", "turns"}


def test_each_task_has_an_encoder_of_its_own():
    net = MultiTask(channels=2)
    x = torch.randn(4, 1, 28, 28)
    for index, task in enumerate(TASKS):
        net.zero_grad()
        net(x, x)[index].square().sum().backward()
        touched = [any(p.grad is not None and p.grad.any() for p in encoder.parameters()) for encoder in net.tasks]
        assert touched == [other == task for other in TASKS]


def test_only_the_rotation_sees_the_turned_images():
    net = MultiTask(channels=2).eval()
    x, y = torch.randn(2, 3, 1, 28, 28)
    same = [torch.equal(a, b) for a, b in zip(net(x, x), net(x, y), strict=True)]
    assert same == [True, True, False]


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 20, 10, 0, 1"):
        MultiTask(bottleneck=0)
