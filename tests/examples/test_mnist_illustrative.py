"""Tests of the MNIST and the difficulty example: nets trained side by side equal nets trained alone."""

import copy
import dataclasses

import entropy_and_difficulty as difficulty
import mnist_illustrative as example
import pytest
import torch
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.data import Augmentation, DataSet, Images


def tiny(count=256):
    def images(n):
        return Images(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8), torch.arange(n) % 10)

    return DataSet(
        "tiny", tuple("0123456789"), images(count), images(50), images(50), (0.5,), (0.3,), Augmentation(), "tiny"
    )


@pytest.mark.parametrize("row", [name for name, row in example.ROWS.items() if not row.train.augment])
def test_nets_side_by_side_train_as_each_alone(row):
    """Compares weights and running statistics after the same images, gradients and clipping, to rounding."""
    config = dataclasses.replace(example.PAPER, epochs=1, batch_size=64, clip_norm=1.0)
    data, seeds = tiny(), (3, 4)
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append(example.ROWS[row].net().double())
    alone = copy.deepcopy(nets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "normalized", lambda images, data: (images.double() / 255 - 0.5) / 0.3)
        example.train(nets, seeds, data, config, lambda epoch: None)
    for seed, net, trained in zip(seeds, alone, nets, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(64):
            optimizer.zero_grad()
            x = (data.train.images[chosen].double() / 255 - 0.5) / 0.3
            F.cross_entropy(net(x), data.train.labels[chosen]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        for (name, ours), theirs in zip(trained.state_dict().items(), net.state_dict().values(), strict=True):
            if ours.is_floating_point():
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("row", list(example.ROWS))
def test_every_row_trains_and_is_saved(row, tmp_path):
    example.run(row, tiny(128), seeds=(0, 1), epochs=1, output=tmp_path)
    assert {path.name for path in (tmp_path / row).iterdir()} == {
        "environment.json", "metrics.json", "result.json", "seed0.safetensors", "seed1.safetensors",
    }  # fmt: skip


def test_rows_apart_never_interact():
    net = example.ROWS["rows_apart"].net().eval()
    x = torch.randn(1, 1, 8, 8)
    other = x.clone()
    other[..., 2, :] += 1
    u = torch.rand(1, 1, 8, 8)
    layer = net.feature.layer
    layer.velocities = lambda x: (u, u)
    changed = (net.feature(x) != net.feature(other)).any(dim=3)[0, 0]
    assert changed.nonzero().flatten().tolist() == [2]


def test_files_of_named_nets_load(tmp_path):
    example.run("pde_w1", tiny(128), seeds=(0,), epochs=1, output=tmp_path)
    assert pc.load(tmp_path / "pde_w1" / "seed0.safetensors")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_rank_correlation_and_quarters():
    x = torch.tensor([3.0, -1.0, 10.0, 4.0, 0.0, 7.0, 8.0, 9.0])
    assert difficulty.rank_correlation(x, x.exp()) == pytest.approx(1)
    assert difficulty.rank_correlation(x, -x) == pytest.approx(-1)
    assert [part.tolist() for part in difficulty.quarters(x)] == [[1, 4], [0, 3], [5, 6], [7, 2]]


def test_the_table_of_difficulty_counts_each_quarter():
    """Uses a net that is right only about constant images, which are the simplest quarter."""

    class Constant(torch.nn.Module):
        def forward(self, x):
            flat = x.flatten(1).std(1) == 0
            return torch.stack([flat.float(), 1 - flat.float()], 1)

    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    images[::4] = 7
    lines = difficulty.table(Constant(), images, (0.5,), (0.3,), torch.zeros(40, dtype=torch.long)).splitlines()
    assert lines[2].startswith("| entropy | 0.0 | 100.0 | 100.0 | 100.0 | +0.")
    net = pc.create_model("puppet_plain", in_channels=1, width=0.25).eval()
    lines = difficulty.table(net, images, (0.5,), (0.3,), torch.zeros(40, dtype=torch.long)).splitlines()
    assert sum(line.startswith("| level ") for line in lines) == 4
