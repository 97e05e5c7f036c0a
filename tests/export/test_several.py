"""Nets of several inputs or outputs are measured, planned, folded and exported like those of one."""

import dataclasses

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import CannotExport
from pocketcnn.export import export, measure_onnx, onnx
from pocketcnn.support.calls import named_tensors

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("unchecked_shapes")
SIZE = (3, 8, 8)
SIZES = (SIZE, (1, 8, 8), (5,))


@dataclasses.dataclass
class Found:
    """What `Several` returns."""

    scores: torch.Tensor
    maps: list


class Several(nn.Module):
    """A net of several outputs, of the kind asked for."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.head = kind, nn.Conv2d(SIZE[0], 2, 3, padding=1)
        self.net = nn.Sequential(*(nn.Conv2d(count, 8, 3, padding=1) for count in (3, 8, 8)))

    def forward(self, x):
        scores, other = self.net(x).mean((2, 3)), self.head(x)
        if self.kind == "record":
            return Found(scores, [other, other.mean((2, 3))])
        return {"tuple": (scores, other), "dict": {"scores": scores, "map": other}, "nothing": 3}[self.kind]


class Meeting(nn.Module):
    """A net of an image, a map and some numbers, with a norm that can be folded."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(9, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(13, 3)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, image, depth, facts):
        maps = self.inner(torch.cat([self.norm(self.stem(image)).relu(), depth], 1))
        return self.head(torch.cat([maps.mean((2, 3)), facts], 1))


def given(count):
    return tuple(torch.randn(count, *size) for size in SIZES)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("tuple", ["output0", "output1"]), ("dict", ["scores", "map"]), ("record", ["scores", "maps.0", "maps.1"])],
)
def test_several_outputs_have_names(kind, names, tmp_path):
    net = pc.condense(Several(kind), "ring", size=0.3).eval()
    found = export(net, tmp_path / "net.onnx", format="onnx_compact", input_size=SIZE, timed=False)
    assert found.max_difference < 1e-4
    session = onnx.session((tmp_path / "net.onnx").read_bytes(), 1)
    assert [output.name for output in session.get_outputs()] == names
    x = torch.randn(3, *SIZE)
    wanted = list(named_tensors(net(x)).values())
    for got, tensor in zip(session.run(names, {"images": x.numpy()}), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), tensor.detach(), atol=1e-4, rtol=1e-4)


def test_several_outputs_in_torchs_format_and_none_at_all(tmp_path):
    export(Several("dict").eval(), tmp_path / "net.pt2", format="torch_export", input_size=SIZE, timed=False)
    assert len(torch.export.load(tmp_path / "net.pt2").module()(torch.randn(2, *SIZE))) == 2
    with pytest.raises(CannotExport, match="Several returns a int without tensors"):
        export(Several("nothing"), tmp_path / "net.onnx", input_size=SIZE)


@pytest.mark.parametrize("format", ["onnx", "onnx_compact"])
def test_several_inputs_have_the_names_of_arguments(format, tmp_path):
    net = pc.condense(Meeting(), "ring", size=0.3).eval()
    path = tmp_path / "net.onnx"
    found = export(net, path, format=format, input_size=SIZES, images=given(34))
    assert found.max_difference < 1e-5
    assert "images 17 to 33" in found.differences
    session, examples = onnx.session(path.read_bytes(), 1), given(4)
    feed = {name: x.numpy() for name, x in zip(("image", "depth", "facts"), examples, strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), net(*examples).detach())
    cost = measure_onnx(path, batch=2, runs=2)
    assert cost.input_size == SIZES
    assert cost.macs == pc.measure(net, SIZES).macs == 64 * 9 * 8 * (3 + 9 + 8) + 39


def test_several_inputs_in_torchs_format_with_several_outputs(tmp_path):
    class Both(Meeting):
        def forward(self, image, depth, facts):
            return {"scores": super().forward(image, depth, facts), "facts": 2 * facts}

    found = export(Both().eval(), tmp_path / "net.pt2", format="torch_export", input_size=SIZES, batch=3, timed=False)
    assert found.max_difference < 1e-5
    scores, facts = torch.export.load(tmp_path / "net.pt2").module()(*given(3))
    assert (scores.shape, facts.shape) == ((3, 3), (3, 5))


def test_nets_of_several_inputs_are_planned_timed_and_folded():
    net = Meeting().eval()
    plan = pc.plan(net, "ring", size=0.3, input_size=SIZES)
    assert plan.before.macs == plan.after.macs == pc.measure(net, SIZES).macs
    assert pc.measure_latency(net, SIZES, batch=2, runs=1, warmup=0).batch == 2
    assert pc.measure_memory(net, SIZES, training=True) > pc.measure_memory(net, SIZES) > 0
    folded = pc.fold_norm(net, input_size=SIZES)
    assert isinstance(folded.norm, nn.Identity)
    examples = given(3)
    torch.testing.assert_close(folded(*examples), net(*examples), atol=1e-5, rtol=1e-5)


def test_sizes_that_a_net_of_several_inputs_cannot_take(tmp_path):
    net = Meeting().eval()
    for wrong in (SIZE, SIZES[:2], (*SIZES[:2], (4,))):
        with pytest.raises(ValueError, match="Meeting cannot take"):
            pc.measure(net, wrong)
        with pytest.raises(ValueError, match="Meeting cannot take"):
            export(net, tmp_path / "net.onnx", input_size=wrong)
    with pytest.raises(ValueError, match="input_size is"):
        pc.measure(net, ((3, 8, 8), (0, 8, 8)))
    with pytest.raises(ValueError, match="or a tuple of such sizes if the net has several inputs"):
        pc.fold_norm(net)
    assert not list(tmp_path.iterdir())


def test_names_of_inputs_and_outputs_are_told_apart(tmp_path):
    class Named(nn.Module):
        def forward(self, left, right):
            return {"left": left + 1, "right": 2 * right}

    class Any(nn.Module):
        def forward(self, input1, *rest, **more):
            return input1 + sum(rest)

    sizes = ((3,), (3,), (3,))
    export(Named(), tmp_path / "net.onnx", input_size=sizes[:2], timed=False)
    session = onnx.session((tmp_path / "net.onnx").read_bytes(), 1)
    assert [one.name for one in session.get_inputs()] == ["left_in", "right_in"]
    assert [one.name for one in session.get_outputs()] == ["left", "right"]
    export(Any(), tmp_path / "net.onnx", input_size=sizes, timed=False)
    session = onnx.session((tmp_path / "net.onnx").read_bytes(), 1)
    assert [one.name for one in session.get_inputs()] == ["input1", "input1_in", "input2"]


def test_notes_of_images_are_for_inputs_of_as_many_channels(tmp_path):
    notes = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    found = export(Meeting().eval(), tmp_path / "net.onnx", input_size=SIZES, notes=notes, timed=False)
    assert found.max_difference < 1e-5


@pytest.mark.parametrize("size", [8, (3, (8, 8)), (3.0, 8, 8), (), ((3, 8, 8), ())])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r"input_size is \(channels, height, width\).*or a tuple of such sizes"):
        pc.measure(nn.Conv2d(3, 3, 3), size)
