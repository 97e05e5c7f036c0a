import re

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cli import main
from pocketcnn.pictures import (
    draw_fields,
    draw_kernels,
    draw_levels,
    draw_maps,
    feature_maps,
    solver_fields,
    stations,
    write_figure,
)


def test_stations_are_convolutions_and_blocks():
    small = pc.condense(pc.create_model("resnet20"), "pde", last_stage="drop")
    assert stations(small) == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3"]
    assert stations(pc.create_model("mnist_net", feature="residual")) == ["conv", "feature"]


def test_feature_maps_are_what_the_modules_give():
    net = pc.create_model("resnet20")
    x = torch.randn(2, 3, 16, 16)
    maps = feature_maps(net, x, ["conv1", "layer1"])
    assert net.training
    net.eval()
    assert torch.equal(maps["conv1"], net.conv1(x))
    assert maps["layer1"].shape == (2, 16, 16, 16)
    assert not net.conv1._forward_hooks
    with pytest.raises(ValueError, match=r"ResNet has no module 'layer9'; it has conv1, layer1\.0"):
        feature_maps(net, x, ["layer9"])
    with pytest.raises(ValueError, match="fc of ResNet gives no feature map"):
        feature_maps(net, x, ["fc"])


@pytest.mark.parametrize(
    ("options", "velocity", "diffusivity"),
    [
        ({}, True, True),
        ({"equation": "diffusion"}, False, True),
        ({"diffusivity": "zero", "velocity": 0.5}, True, False),
    ],
)
def test_fields_are_those_of_the_layer(options, velocity, diffusivity):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), pc.methods.pde.GlobalLayer(3, num_steps=4, **options)).eval()
    x = torch.randn(2, 1, 9, 8)
    fields = solver_fields(net, "1", x)
    h = net[0](x)
    assert torch.equal(fields.steps[0], h)
    assert torch.equal(fields.after, net(x))
    torch.testing.assert_close(fields.steps[4], net[1].solve(h, 4))
    assert len(fields.steps) == 5
    assert (fields.velocity is not None, fields.diffusivity is not None) == (velocity, diffusivity)
    figure = draw_fields(torch.zeros(1, 9, 8, dtype=torch.uint8), fields, title="a net")
    assert figure.get_suptitle().startswith("a net, channel ")
    with pytest.raises(ValueError, match="'0' is no Global layer; the net has 1"):
        solver_fields(net, "0", x)
    with pytest.raises(ValueError, match=r"channel must lie in \[0, 3\), got 3"):
        draw_fields(torch.zeros(1, 9, 8, dtype=torch.uint8), fields, channel=3)


def test_maps_that_are_compared_share_a_scale():
    nets = {kind: pc.create_model("mnist_net", feature=kind) for kind in ("conv", "pde")}
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    x = images.float() / 255
    maps = [
        axis.images[0]
        for axis in draw_maps(images, nets, x).axes
        if axis.images and axis.images[0].cmap.name == "viridis"
    ]
    assert len(maps) == 4
    assert len({image.get_clim() for image in maps}) == 1
    alone = draw_maps(images, {"pde": nets["pde"]}, x)
    assert len({a.images[0].get_clim() for a in alone.axes if a.images and a.images[0].cmap.name == "viridis"}) == 2


def test_picture_from_the_command_line(tmp_path, capsys):
    pillow = pytest.importorskip("PIL.Image")
    notes = {"data": "digits", "input_size": [1, 28, 28], "mean": [0.3], "std": [0.4]}
    for feature in ("conv", "pde"):
        (tmp_path / feature).mkdir()
        pc.save(pc.create_model("mnist_net", feature=feature), tmp_path / feature / "model.safetensors", notes=notes)
    pillow.new("RGB", (40, 30), (200, 100, 0)).save(tmp_path / "photo.png")
    words = [
        "picture",
        str(tmp_path / "conv"),
        str(tmp_path / "pde" / "model.safetensors"),
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as left:
        main([*words, "--image-file", str(tmp_path / "photo.png"), "--titles", "one", "two"])
    assert not left.value.code
    written = capsys.readouterr().out.splitlines()
    assert [re.sub(".*/", "", path) for path in written] == [
        "maps.png", "maps.svg", "fields-two-feature.png", "fields-two-feature.svg",
    ]  # fmt: skip
    assert (tmp_path / "out" / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "maps.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "BadUsage: "),
        (["nowhere.safetensors"], "FileNotFoundError: nowhere.safetensors: no such model file"),
        (["empty"], "FileNotFoundError: empty: no model file"),
        (["bare.safetensors"], "BadUsage: bare.safetensors: not a trained net's file"),
        (["net.safetensors", "--images", "9999"], "BadUsage: images are numbers from 0 to 358, got 9999"),
        (["net.safetensors", "net.safetensors"], "BadUsage: two nets are called 'net'; --titles gives them names"),
        (["net.safetensors", "other.safetensors"], "BadUsage: other was trained on other images than net"),
        (["other.safetensors", "--data", "digits"], "BadUsage: digits: images are 1x8x8, the net was trained on 1x9x9"),
        (["net.safetensors", "--titles", "one", "two"], "BadUsage: 2 titles for 1 nets"),
        (["net.safetensors", "--image-file", "gone.png"], "FileNotFoundError: gone.png: no such image file"),
        (["net.safetensors", "--layer", "layer7"], "ValueError: ResNet has no module 'layer7'"),
    ],
)
def test_mistakes_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    net = pc.create_model("resnet20", in_channels=1, width=0.25)
    pc.save(net, "bare.safetensors")
    notes = {"data": "digits", "input_size": [1, 8, 8], "mean": [0.3], "std": [0.4]}
    pc.save(net, "net.safetensors", notes=notes)
    pc.save(net, "other.safetensors", notes=notes | {"input_size": [1, 9, 9], "data": "elsewhere"})
    with pytest.raises(SystemExit) as left:
        main(["picture", *words])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_equal_pictures_are_equal_files(tmp_path):
    torch.manual_seed(0)
    net = pc.create_model("mnist_net", feature="pde")
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    texts = []
    for name in ("one", "two"):
        write_figure(draw_maps(images, {"net": net}, images.float()), tmp_path, name)
        texts.append((tmp_path / f"{name}.svg").read_text())
    assert texts[0] == texts[1]


def test_pictures_of_a_net_whose_depth_depends_on_the_image(tmp_path):
    from pocketcnn.methods.puppet import puppeteers_of

    net = pc.create_model("puppet_plain", width=0.25)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    pixels[::2] = pixels[::2, :1, :1, :1]
    levels = draw_levels(pixels, pixels / 255, torch.arange(40) % 3, ("a", "b", "c"), net, title="noise and constants")
    texts = [axis.get_xlabel() for axis in levels.axes]
    assert "blocks passed, of 18" in texts
    simplest = [axis.get_title() for axis in levels.axes if axis.get_title()][:8]
    assert simplest == ["0.00"] * 8
    kernels = draw_kernels(puppeteers_of(net)[0])
    assert sum("kernel " in axis.get_title() for axis in kernels.axes) == 8
    for figure, name in ((levels, "levels"), (kernels, "kernels")):
        assert all(path.stat().st_size > 1000 for path in write_figure(figure, tmp_path, name))
    with pytest.raises(ValueError, match="does not depend on what can be seen"):
        draw_levels(pixels, pixels / 255, torch.zeros(40), ("a",), pc.create_model("resnet20"))


@pytest.mark.parametrize(("options", "drawn"), [({}, {"kernels", "levels", "maps"}), ({"measure": "features"}, {"kernels", "maps"}),
                                                ({"generator": "stored"}, {"levels", "maps"})])  # fmt: skip
def test_pictures_of_a_puppet_from_the_command_line(options, drawn, tmp_path):
    net = pc.condense(pc.create_model("plainnet20", in_channels=1, width=0.25), "puppet", **options)
    notes = {"data": "digits", "input_size": [1, 8, 8], "mean": [0.3], "std": [0.4]}
    pc.save(net, tmp_path / "net.safetensors", notes=notes)
    with pytest.raises(SystemExit) as left:
        main(["picture", str(tmp_path / "net.safetensors"), "--output", str(tmp_path / "out")])
    assert left.value.code in (0, None)
    assert {path.name.split("-")[0].split(".")[0] for path in (tmp_path / "out").iterdir()} == drawn
