"""The seam: a method is one record in `METHODS`, and everything else follows from it."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.errors import UnknownMethod
from pocketcnn.methods import METHODS, Method, get_method
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments
from pocketcnn.methods._sites import conv_sites
from pocketcnn.models.spec import parse_method
from pocketcnn.surgery import needs_seed


@dataclass(frozen=True)
class LowRankOptions:
    """How much is stored."""

    rank: int = 2
    """Columns of the first factor."""

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")


class LowRankConv2d(AbstractConv2d):
    """A convolution whose kernel is the product of two thin matrices."""

    condensed_by = "lowrank"

    def __init__(self, *arguments, rank, bias, device, dtype, **keywords):
        super().__init__(*arguments, **keywords)
        rows, columns = self.out_channels, torch.Size(self.weight_shape[1:]).numel()
        self.left = nn.Parameter(torch.randn(rows, rank, device=device, dtype=dtype))
        self.right = nn.Parameter(torch.randn(rank, columns, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(rows, device=device, dtype=dtype)) if bias else None

    def dense_weight(self, x=None):
        return (self.left @ self.right).view(self.weight_shape)

    def generator_parameters(self):
        return [self.left, self.right]

    def forward(self, x):
        x, padding = self.pad(x)
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)


LOW_RANK = Method(
    name="lowrank",
    summary="every kernel is a product of two thin matrices",
    source="a test",
    options=LowRankOptions,
    sites=lambda model, options: conv_sites(model, obstacle=lambda conv: "" if conv.groups == 1 else "it has groups"),
    build=lambda sites, options: {
        site.name: LowRankConv2d(**conv_arguments(site.module), rank=options.rank) for site in sites
    },
)


@pytest.fixture
def lowrank(monkeypatch):
    monkeypatch.setitem(METHODS, "lowrank", LOW_RANK)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.mark.usefixtures("lowrank")
def test_a_record_in_the_dictionary_is_a_method(tmp_path):
    plain, x = net(), torch.randn(2, 3, 9, 9)
    plan = pc.plan(plain, "lowrank", input_size=(3, 9, 9), rank=1)
    assert plan.replaced == ["1"]
    assert [row.reason for row in plan.rows] == [
        "the stem: the first layer is left alone by default",
        "",
        "it has groups",
    ]
    small = pc.condense(plain, "lowrank", rank=1)
    assert plan.after == pc.measure(small, (3, 9, 9))
    assert plan.after.trainable_params == plan.before.trainable_params - 8 * 72 + 8 + 72
    assert plan.after.generated_params == plan.before.generated_params
    torch.testing.assert_close(pc.materialize(small)(x), small(x))
    pc.save(small, tmp_path / "small.safetensors")
    assert torch.equal(pc.load(tmp_path / "small.safetensors", base=net())(x), small(x))


@pytest.mark.usefixtures("lowrank")
def test_options_in_words_and_their_errors():
    assert parse_method("lowrank:rank=3") == ("lowrank", {"rank": 3})
    with pytest.raises(ValueError, match="lowrank: rank must be at least 1, not 0"):
        pc.condense(net(), "lowrank", rank=0)
    with pytest.raises(ValueError, match="ring has no option 'rank'; it belongs to lowrank; its options: size, seed"):
        pc.condense(net(), "ring", rank=3)
    with pytest.raises(UnknownMethod, match="no method 'lowrnk'; did you mean 'lowrank'"):
        get_method("lowrnk")


def test_which_seeds_a_file_could_do_without():
    assert not needs_seed("condconv", {"num_experts": 4})
    assert needs_seed("puppet", {"seed": 3})
    assert needs_seed("a later method", {"seed": 3})
    schemes = {"random": True, "block": True, "affine": True, "identity": False, "windows": False}
    assert {scheme: needs_seed("ring", {"seed": 3, "scheme": scheme}) for scheme in schemes} == schemes
