"""Pictures of what layers have learned and of how alike nets are: computations equal loops, every figure is drawn once."""

import importlib
import re

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cli import main
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.numerics import linear_cka
from pocketcnn.pictures import (
    alignments,
    class_share,
    draw_correlated,
    draw_law,
    draw_pixel_kernels,
    draw_ring,
    draw_routing,
    draw_similarity,
    feature_maps,
    filter_similarity,
    layer_kernels,
    pixel_kernels,
    ring_fraction,
    ring_overlap,
    ring_usage,
    rings,
    routing,
    same_stations,
    similarity,
    station_grams,
    write_figure,
)

NOTES = {"data": "digits", "input_size": [1, 8, 8], "mean": [0.3], "std": [0.4]}


def plain():
    return pc.create_model("resnet20", in_channels=1, width=0.25)


def small(method, **options):
    return pc.condense(plain(), method, **options)


def panels(figure):
    """The axes that show something, colour bars left out."""
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_routing_is_what_the_layers_weigh():
    net = small("condconv", num_experts=3)
    x = torch.randn(7, 1, 8, 8)
    weights = routing(net, x)
    assert net.training
    assert len(weights) == sum(hasattr(module, "routing_weights") for module in net.modules())
    net.eval()
    first = next(iter(weights))
    assert first == "layer1.0.conv1"
    expected = net.layer1[0].conv1.routing_weights(net.relu(net.bn1(net.conv1(x))))
    torch.testing.assert_close(weights[first], expected.detach())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_routing_leaves_out_followers():
    weights = routing(small("condconv", routing="block"), torch.randn(2, 1, 8, 8))
    assert list(weights) == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]


def test_class_share_equals_a_loop_and_known_answers():
    values, labels = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 4
    within = total = 0.0
    for expert in range(4):
        mean = sum(values[:, expert].tolist()) / 30
        for k in range(4):
            members = [values[i, expert].item() for i in range(30) if labels[i] == k]
            within += sum((v - sum(members) / len(members)) ** 2 for v in members)
        total += sum((v - mean) ** 2 for v in values[:, expert].tolist())
    assert class_share(values, labels) == pytest.approx(1 - within / total, abs=1e-12)
    assert class_share(labels[:, None].float(), labels) == pytest.approx(1)
    assert class_share(torch.full((30, 2), 0.1), labels) == 0


@pytest.mark.parametrize(("include", "layers"), [(None, 6), (["layer3.2.*"], 2)], ids=["many", "few"])
def test_drawing_of_routing(include, layers, tmp_path):
    net = small("condconv", include=include)
    x, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    figure = draw_routing(net, x, labels, ("a", "b", "c", "without images"), title="a net")
    maps = [axis for axis in panels(figure) if axis.images]
    assert len(maps) == layers
    assert [tick.get_text() for tick in maps[0].get_yticklabels()] == ["a", "b", "c", "without images"]
    assert len(panels(figure)) == layers + 1
    write_figure(figure, tmp_path, "routing")
    with pytest.raises(ValueError, match="ResNet has no CondConv layer"):
        draw_routing(plain(), x, labels, ("a",))


def test_kernels_of_pixels(tmp_path):
    net = small("involution", group_channels=4)
    x = torch.randn(2, 1, 8, 8)
    kernels = pixel_kernels(net, x)
    name = next(iter(kernels))
    assert name == "layer1.0.conv2"
    net.eval()
    torch.testing.assert_close(kernels[name], net.get_submodule(name).dense_weight(inputs_of(net, name, x)).detach())
    assert kernels[name].shape == (2, 1, 9, 8, 8)
    figure = draw_pixel_kernels(net, torch.zeros(1, 8, 8, dtype=torch.uint8), x[:1], title="a net")
    # 4 layers: each the image and the norm; and of 4 to 16 channels, in groups of 4, at most 4 sums.
    assert sum(bool(axis.images) for axis in panels(figure)) == 4 * 2 + 1 + 2 + 2 + 4
    write_figure(figure, tmp_path, "pixels")
    with pytest.raises(ValueError, match="ResNet has no involution layer"):
        draw_pixel_kernels(plain(), torch.zeros(1, 8, 8, dtype=torch.uint8), x)


def inputs_of(net, name, x):
    seen = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("size", [5, 40, 300])
def test_usage_and_overlap_equal_loops(size):
    ring = ParameterRing([(4, 3, 3, 3), (2, 4, 1, 1), (3, 2, 3, 3)], size=size, seed=1)
    indices = ring.indices.tolist()
    usage = [sum(place == stored for place in indices) for stored in range(size)]
    assert ring_usage(ring).tolist() == usage
    places = [set(indices[:108]), set(indices[108:116]), set(indices[116:])]
    expected = [[len(a & b) / min(len(a), len(b)) for b in places] for a in places]
    torch.testing.assert_close(ring_overlap(ring), torch.tensor(expected))


def test_drawing_of_rings(tmp_path):
    net = small("ring", size=0.1)
    ((ring, names),) = rings(net)
    assert ring is net.layer1[0].conv1.ring
    assert names[0] == "layer1.0.conv1"
    assert len(names) == len(ring.sizes)
    assert ring_fraction(net) == len(ring.values) / sum(ring.sizes)
    figure = draw_ring(net, title="a net")
    assert len(panels(figure)) == 3
    write_figure(figure, tmp_path, "ring")
    several = nn.Sequential(*(pc.methods.ring.RingConv2d(2, 3, 3, size=4, seed=seed) for seed in range(9)))
    assert len(rings(several)) == 9
    assert len(panels(draw_ring(several))) == 4 * 3
    assert ring_fraction(plain()) is None
    with pytest.raises(ValueError, match="ResNet has no ring"):
        draw_ring(plain())


def test_similarity_is_cka_of_flattened_maps():
    a, b, x = plain(), small("ring"), torch.randn(9, 1, 8, 8)
    found = similarity(a, b, x, names_b=["conv1", "layer2"])
    maps_a, maps_b = feature_maps(a, x), feature_maps(b, x, ["conv1", "layer2"])
    expected = [[linear_cka(p.flatten(1), q.flatten(1)) for q in maps_b.values()] for p in maps_a.values()]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(similarity(a, a, x).diagonal(), torch.ones(len(maps_a)))


def test_drawing_of_similarity(tmp_path):
    x = torch.randn(6, 1, 8, 8)
    nets = {"plain": plain(), "ring": small("ring"), "pde": small("pde", last_stage="drop")}
    grams = {title: station_grams(net, x) for title, net in nets.items()}
    assert alignments(grams["plain"], grams["pde"]).shape == (10, 6)
    assert list(same_stations(grams["plain"], grams["pde"])) == [
        "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1",
    ]  # fmt: skip
    figure = draw_similarity(grams)
    assert len(panels(figure)) == 6
    write_figure(figure, tmp_path, "cka")
    assert len(panels(draw_similarity({"plain": grams["plain"]}))) == 1
    with pytest.raises(ValueError, match="similarity needs at least 2 examples, got 1"):
        station_grams(nets["plain"], x[:1])


def test_kernels_of_layers():
    net, ring = plain(), small("ring")
    kernels, read = layer_kernels(net), layer_kernels(ring)
    assert list(kernels) == list(read)
    assert torch.equal(read["layer2.0.conv1"], ring.layer2[0].conv1.dense_weight())
    assert torch.equal(kernels["conv1"], net.conv1.weight)
    # Kernels of CondConv depend on the image; convolutions that make an involution's kernels are left out.
    assert list(layer_kernels(small("condconv"))) == ["conv1"]
    assert not any("generator" in name for name in layer_kernels(small("involution", group_channels=4)))
    assert set(layer_kernels(pc.create_model("puppet_plain", width=0.25)))


def test_filter_similarity_counts_planted_twins():
    net = nn.Sequential(nn.Conv2d(16, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 50, 1))  # the last: 12 weights a filter
    with torch.no_grad():
        net[1].weight[5] = -3 * net[1].weight[2]
    share, strength = filter_similarity(net, 0.9)
    assert share == 2 / 20
    pairs = []
    for conv in net[:2]:
        r = torch.corrcoef(conv.weight.detach().flatten(1).double()).abs()
        pairs += [r[i, j].item() for i in range(len(r)) for j in range(i)]
    assert strength == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert filter_similarity(net, 0.3) is None  # random filters of 144 weights would reach that by chance
    assert filter_similarity(nn.Linear(2, 2), 0.5) is None
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\), got 0"):
        filter_similarity(net, 0.0)


def test_drawing_of_the_law_and_of_correlations(tmp_path):
    series = {"ring": [(1000, 0.6), (10_000, 0.7), (100_000, 0.8)], "plain": [(270_000, 0.9)]}
    figure = draw_law(series, fitted=["ring"])
    (axis,) = figure.axes
    assert len(axis.texts) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ring: +10.0 points a decade, R² 1.000",
        "plain",
    ]
    write_figure(figure, tmp_path, "law")
    assert not draw_law({"many": [(n, 0.5) for n in range(1, 40)]}).axes[0].texts
    with pytest.raises(ValueError, match="no series 'puppet' to fit; there are ring, plain"):
        draw_law(series, fitted=["puppet"])
    with pytest.raises(ValueError, match="fewer than 3 points"):
        draw_law(series, fitted=["plain"])
    figure = draw_correlated({"ring": [(0.5, 0.1), (0.01, 0.4)]}, plain=0.05, threshold=0.3)
    (axis,) = figure.axes
    assert axis.lines[0].get_xdata().tolist() == [0.01, 0.5]
    assert "≥ 0.3" in axis.get_ylabel()
    write_figure(figure, tmp_path, "correlated")


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


@pytest.mark.parametrize(
    ("method", "options", "drawn"),
    [("ring", {}, "ring-net"), ("condconv", {}, "routing-net"), ("involution", {"group_channels": 4}, "pixels-net")],
)
def test_pictures_of_what_is_inside_from_the_command_line(method, options, drawn, tmp_path):
    pc.save(small(method, **options), tmp_path / "net.safetensors", notes=NOTES)
    assert not run("picture", str(tmp_path / "net.safetensors"), "--titles", "net", "--output", str(tmp_path / "out"))
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"maps", drawn}


def test_a_method_without_pictures_is_named(tmp_path, capsys, monkeypatch):
    verb = importlib.import_module("pocketcnn.cli.verbs.picture")
    monkeypatch.setattr(verb, "part_of", lambda wing, method: None)
    pc.save(small("ring"), tmp_path / "net.safetensors", notes=NOTES)
    assert not run("picture", str(tmp_path / "net.safetensors"), "--output", str(tmp_path / "out"))
    said = capsys.readouterr()
    assert said.err == "no pictures of method 'ring': pocketcnn/pictures/ring.py is missing\n"
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"maps"}


def test_similarity_from_the_command_line(tmp_path, capsys):
    nets = {"plain": plain(), "ring": small("ring", size=0.1), "condconv": small("condconv")}
    for title, net in nets.items():
        (tmp_path / title).mkdir()
        pc.save(net, tmp_path / title / "model.safetensors", notes=NOTES)
    folders = [str(tmp_path / title) for title in nets]
    assert not run("similarity", *folders, "--images", "40", "--threshold", "0.5", "--output", str(tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("linear CKA of 40 test images")
    assert re.split("  +", lines[1]) == ["net", "as plain", "own layers", "filters |r|>=0.5", "mean |r|"]
    assert lines[2].split()[:2] == ["plain", "1.000"]
    assert lines[3].split()[0] == "ring"
    assert lines[4].split()[3:] == ["-", "-"]  # the only layer with one kernel for all images is the stem
    assert [re.sub(".*/", "", line) for line in lines[5:]] == ["cka.png", "cka.svg", "correlated.png", "correlated.svg"]


def test_the_rings_law_is_drawn_where_their_runs_left_records(tmp_path):
    folders = []
    for size in (0.1, 0.3, 0.9):
        folders.append(tmp_path / f"ring{size}")
        folders[-1].mkdir()
        pc.save(small("ring", size=size), folders[-1] / "model.safetensors", notes=NOTES)
    words = ["similarity", *map(str, folders), "--images", "20", "--output", str(tmp_path / "out")]
    assert not run(*words)
    assert not (tmp_path / "out" / "law.svg").exists()
    for folder in folders:
        (folder / "result.json").write_text('{"test_accuracy": 0.5}')
    assert not run(*words)
    assert (tmp_path / "out" / "law.svg").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "BadUsage: "),
        (["net.safetensors", "--images", "1"], "BadUsage: similarity needs at least 2 images, got 1"),
        (["net.safetensors", "--threshold", "1.5"], "BadUsage: --threshold must lie in (0, 1), got 1.5"),
        (["net.safetensors", "other.safetensors"], "BadUsage: other was trained on other images than net"),
        (["other.safetensors", "--data", "digits"], "BadUsage: digits: images are 1x8x8, the net was trained on 1x9x9"),
        (["bare.safetensors"], "BadUsage: bare.safetensors: not a trained net's file"),
    ],
)
def test_mistakes_about_similarity_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = plain()
    pc.save(net, "bare.safetensors")
    pc.save(net, "net.safetensors", notes=NOTES)
    pc.save(net, "other.safetensors", notes=NOTES | {"input_size": [1, 9, 9], "data": "elsewhere"})
    assert run("similarity", *words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
