"""Nets that return more than scores of classes train with a loss and a metric of the user's own."""

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.errors import BadData
from pocketcnn.train import TrainConfig, evaluate, fit

CONFIG = TrainConfig(epochs=2, batch_size=64, lr=0.05, precision="float32", channels_last="off")


class WithAux(nn.Module):
    """A net with a side output, as GoogLeNet has in training; here always."""

    def __init__(self):
        super().__init__()
        self.net = pc.create_model("resnet20", in_channels=1, width=0.25)
        self.side = nn.Linear(64, 10)

    def forward(self, x):
        return {"logits": self.net(x), "side": self.side(x.flatten(1))}


def loss(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels) + 0.3 * F.cross_entropy(outputs["side"], labels)


def side_is_right(outputs, labels):
    return (outputs["side"].argmax(1) == labels).float()


def test_a_net_of_several_outputs_trains(digits, tmp_path):
    torch.manual_seed(0)
    net = WithAux()
    result = fit(net, digits, CONFIG, tmp_path / "run", loss=loss, metric=side_is_right)
    assert result["test_accuracy"] > 0.6, "of the side output"
    assert evaluate(net, digits, loss=loss, metric=side_is_right)["test_accuracy"] == result["test_accuracy"]
    by_logits = evaluate(net, digits, loss=loss)["test_accuracy"]
    right = net.eval()((digits.test.images.float() / 255 - digits.mean[0]) / digits.std[0])["logits"].argmax(1)
    assert by_logits == pytest.approx(float((right == digits.test.labels).float().mean()))
    assert result["identity"] == {"loss": "loss", "metric": "side_is_right"}
    again = fit(WithAux(), digits, CONFIG, tmp_path / "run", loss=functools.partial(loss), metric=side_is_right)
    assert again["test_accuracy"] == result["test_accuracy"], "a finished run is read"
    with pytest.raises(ValueError, match="holds a run with other settings"):
        fit(net, digits, CONFIG, tmp_path / "run", loss=lambda o, y: loss(o, y))


def test_the_usual_loss_given_by_hand_changes_nothing(few, tmp_path):
    results = []
    for name, given in (("usual", {}), ("own", {"loss": F.cross_entropy})):
        torch.manual_seed(0)
        net = pc.create_model("resnet20", in_channels=1, width=0.25)
        results.append(fit(net, few, dataclasses.replace(CONFIG, epochs=1), tmp_path / name, **given))
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert results[0]["test_loss"] == pytest.approx(results[1]["test_loss"], rel=1e-5)


def test_students_of_such_nets_learn_their_first_output(few, tmp_path):
    torch.manual_seed(0)
    teacher = WithAux().eval()
    found = pc.distil(teacher, "ring:size=0.5,include=net.*", few, CONFIG, tmp_path / "run", loss=loss)
    assert "validation_accuracy" in found["start"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "returns a dict of 'logits', 'side' .*; in Python, give loss= and metric= that take what it returns",
        ),
        (
            {"loss": lambda outputs, labels: outputs["map"].mean()},
            "the loss cannot take what the net returns, .*KeyError",
        ),
        ({"loss": lambda outputs, labels: outputs["side"]}, "the loss returns .*, not a tensor of one number"),
        (
            {"loss": loss, "metric": lambda outputs, labels: 0.5},
            "the metric returns a float, not a tensor of one number",
        ),
    ],
)
def test_losses_that_do_not_fit_are_refused_before_anything_is_written(given, message, few, tmp_path):
    with pytest.raises(BadData, match=message):
        fit(WithAux(), few, CONFIG, tmp_path / "run", **given)
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ValueError, match="tta 'flip' averages scores of classes"):
        fit(WithAux(), few, dataclasses.replace(CONFIG, tta="flip"), tmp_path / "run", loss=loss)
