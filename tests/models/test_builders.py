"""Nets by name from anywhere: this package, a registered builder, timm, torchvision, a file or module of one's own."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import BadFactory, BrokenFile, MissingBase, UnknownModel
from pocketcnn.models import builders
from pocketcnn.models.builders import image_facts, register_model, split_name
from pocketcnn.models.spec import NetSpec, parse_model, spell

CODE = """
import dataclasses
from torch import nn
from beside import Layer

@dataclasses.dataclass
class Size:
    width: int = 4

def build(num_classes=3, width=Size().width):
    return nn.Sequential(Layer(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.Flatten(), nn.Linear(8 * 36, num_classes))

class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)

def condensed():
    import pocketcnn as pc
    return pc.condense(build(), "ring", include="*", size=0.5)

def ours(width=0.5):
    import pocketcnn as pc
    return pc.create_model("resnet20", width=width)

def raises():
    raise RuntimeError("out of luck")

def number():
    return 3

net = build()
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "beside.py").write_text("from torch.nn import Conv2d as Layer\n")
    (tmp_path / "mine.py").write_text(CODE)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("resnet20", "resnet20", {}),
        ("mnist_net:feature=pde,width=8", "mnist_net", {"feature": "pde", "width": 8}),
        ("timm:resnet10t", "timm:resnet10t", {}),
        ("timm:vit_tiny.augreg:num_classes=3", "timm:vit_tiny.augreg", {"num_classes": 3}),
        ("nets/mine.py:build", "nets/mine.py:build", {}),
        ("nets/mine.py:build:width=0.5,a=x", "nets/mine.py:build", {"width": 0.5, "a": "x"}),
        (r"C:\nets\mine.py:build:width=2", r"C:\nets\mine.py:build", {"width": 2}),
        ("package.module:Net", "package.module:Net", {}),
    ],
)
def test_a_net_in_words(text, name, options):
    assert parse_model(text) == (name, options)
    assert parse_model(spell(name, options)) == (name, options)


def test_an_option_without_a_value_is_no_factory():
    assert split_name("resnet20:width") == ("resnet20", "width")
    with pytest.raises(ValueError, match="option 'width' has no value"):
        parse_model("resnet20:width")


def test_a_factory_in_a_file_makes_a_net_that_is_saved_with_its_name(code, tmp_path):
    net = pc.create_model(f"{code}:build", width=6)
    small = pc.condense(net, "ring", include="*", size=0.3).eval()
    pc.save(small, tmp_path / "small.safetensors")
    again = pc.load(tmp_path / "small.safetensors")  # this process was told of the code
    x = torch.randn(2, 1, 8, 8)
    assert again(x).equal(small(x))
    assert again.provenance.base == {"name": f"{code}:build", "options": {"width": 6}}
    assert isinstance(pc.create_model(f"{code}:Net", width=3), nn.Module)


def test_a_file_starts_no_code_by_itself(code, tmp_path):
    pc.save(pc.create_model(f"{code}:build", width=5), tmp_path / "net.safetensors")
    script = (
        "import sys, pocketcnn as pc\n"
        f"path, name = {str(tmp_path / 'net.safetensors')!r}, {code + ':build'!r}\n"
        "try:\n    pc.load(path)\nexcept pc.errors.MissingBase as error:\n    print(error)\n"
        "assert not any('mine' in name for name in sys.modules)\n"
        "print(pc.load(path, base=name)[0].out_channels)\n"
        "print(pc.load(path)[0].out_channels)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    refused, *channels = found.stdout.splitlines()
    assert refused.endswith(f'code that no file may start by itself; if you trust it, pass base="{code}:build"'), found
    assert channels == ["5", "5"]


def test_the_code_may_have_moved(code, tmp_path):
    pc.save(pc.create_model(f"{code}:build", width=5), tmp_path / "net.safetensors")
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.write_text(CODE)
    again = pc.load(tmp_path / "net.safetensors", base=f"{moved}:build")
    assert again[0].out_channels == 5, "options are those of the file"
    assert again.provenance.base["name"] == f"{moved}:build"


def test_another_working_folder_has_other_files(tmp_path, monkeypatch):
    for name, channels in (("a", 3), ("b", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f"from torch import nn\ndef build():\n    return nn.Conv2d(1, {channels}, 1)\n"
        )
        monkeypatch.chdir(tmp_path / name)
        assert pc.create_model("mine.py:build").out_channels == channels


def test_a_file_fetches_no_trained_weights(timm, tmp_path):
    net = pc.create_model("timm:mobilenetv3_small_050", num_classes=5)
    base = {"name": "timm:mobilenetv3_small_050", "options": {"num_classes": 5, "pretrained": True}}
    vars(net)["provenance"] = pc.surgery.Provenance(base, ())
    pc.save(net, tmp_path / "net.safetensors")
    with pytest.raises(BrokenFile, match="asks for pretrained of timm:mobilenetv3_small_050, which would be fetched"):
        pc.load(tmp_path / "net.safetensors")


def test_a_header_that_names_code_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    net = pc.create_model("resnet20", width=0.1)
    vars(net)["provenance"] = pc.surgery.Provenance({"name": "os:system", "options": {"command": "echo"}}, ())
    pc.save(net, path)
    with pytest.raises(MissingBase, match="made by os:system, code that no file may start"):
        pc.load(path)


def test_a_factory_may_return_nets_of_ours(code, tmp_path):
    ours = pc.create_model(f"{code}:ours", width=0.2)
    assert ours.provenance.base == {"name": f"{code}:ours", "options": {"width": 0.2}}, (
        "it may have changed what we made"
    )
    small = pc.create_model(f"{code}:condensed").eval()
    pc.save(small, tmp_path / "small.safetensors")
    again, x = pc.load(tmp_path / "small.safetensors"), torch.randn(1, 1, 8, 8)
    assert again(x).equal(small(x))


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        ("build", {"size": 3}, ValueError, "no option 'size'; it takes: num_classes, width"),
        ("raises", {}, BadFactory, "making the net failed .RuntimeError: out of luck, .*mine.py, line"),
        ("number", {}, BadFactory, "returns a int, not an nn.Module"),
        ("net", {}, BadFactory, "is a Sequential; name a function or class that makes a net"),
        ("bild", {}, BadFactory, "has no 'bild'; it has: Size, build, Net, condensed, ours, raises, number"),
    ],
)
def test_what_a_factory_cannot_do(code, factory, options, error, message):
    with pytest.raises(error, match=message):
        pc.create_model(f"{code}:{factory}", **options)


def test_files_and_modules_that_are_not_there(tmp_path):
    with pytest.raises(BadFactory, match=r"there is no file .*none\.py"):
        pc.create_model(f"{tmp_path}/none.py:build")
    with pytest.raises(BadFactory, match=r"there is no module no\.such"):
        pc.create_model("no.such:build")
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(BadFactory, match=r"importing .*broken\.py failed .ModuleNotFoundError: .*line 1"):
        pc.create_model(f"{tmp_path}/broken.py:build")
    with pytest.raises(UnknownModel, match="no model 'resnet21'"):
        pc.create_model("resnet21")


def test_a_module_of_the_working_folder(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "in_folder.py").write_text("from torch import nn\ndef build():\n    return nn.Conv2d(1, 2, 3)\n")
    assert pc.create_model("in_folder:build").out_channels == 2


def test_a_registered_builder_is_a_name_like_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_registered", {})
    register_model("tiny", lambda width=4: nn.Sequential(nn.Conv2d(1, width, 3), nn.Conv2d(width, 8, 3)))
    assert "tiny" in pc.list_models()
    net = NetSpec("tiny", "ring", {"size": 0.5, "include": "*"}, {"width": 6}).build(seed=1)
    pc.save(net, tmp_path / "tiny.safetensors")
    assert pc.load(tmp_path / "tiny.safetensors")[0].out_channels == 6
    with pytest.raises(ValueError, match="'resnet20' is the name of another net"):
        register_model("resnet20", lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match="'a b' cannot be a net's name"):
        register_model("a b", lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match="a builder is a function that returns a net, not a Linear"):
        register_model("line", nn.Linear(1, 1))


def test_nets_of_timm(timm, tmp_path):
    net = pc.create_model("timm:mobilenetv3_small_050", num_classes=5, in_channels=1).eval()
    pc.save(net, tmp_path / "net.safetensors")
    x = torch.randn(1, 1, 32, 32)
    assert pc.load(tmp_path / "net.safetensors")(x).equal(net(x)), "timm is a library that needs no trust"
    assert image_facts("timm:resnet10t")["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert image_facts("timm:resnet10t")["input_size"] == [3, 176, 176]
    with pytest.raises(UnknownModel, match=r"no model 'timm:resnet10x'; did you mean 'timm:resnet10t'"):
        pc.create_model("timm:resnet10x")
    with pytest.raises(ValueError, match="checkpoint_path is no option here"):
        pc.create_model("timm:resnet10t", checkpoint_path="evil.pth")


def test_nets_of_torchvision(torchvision, tmp_path):
    net = pc.create_model("torchvision:squeezenet1_1", num_classes=5).eval()
    pc.save(net, tmp_path / "net.safetensors")
    x = torch.randn(1, 3, 64, 64)
    assert pc.load(tmp_path / "net.safetensors")(x).equal(net(x))
    assert image_facts("torchvision:resnet18")["input_size"] == [3, 224, 224]
    assert pc.models.recipes.options_for("torchvision:resnet18", {"in_channels": 3, "num_classes": 5}) == {
        "num_classes": 5
    }
    with pytest.raises(ValueError, match="no option 'weights'"):
        pc.create_model("torchvision:resnet18", weights="DEFAULT")
