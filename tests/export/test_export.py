"""Exported files give the outputs of their nets, for every method and batch, and hold nothing that this does not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import CannotExport, CannotWrite, Disagreement, ExportedFile, MissingExtra
from pocketcnn.export import _check, executorch, export, measure_onnx, onnx
from pocketcnn.export._trace import trace
from pocketcnn.export.compact import CompactNet
from pocketcnn.export.compact.places import Codes, Places
from pocketcnn.methods.puppet import gauge_of

onnx_package = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("unchecked_shapes")
ROOT = Path(__file__).parents[2]
SIZE = (3, 8, 8)
NOTES = {"classes": ["cat", "dog", "eel"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3], "data": "pets"}
METHODS = {
    "ring": {"size": 0.2, "scheme": "affine"},
    "puppet": {"size": 300, "levels": 2},
    "pde": {"num_steps": 2},
    "condconv": {"num_experts": 2},
    "involution": {"group_channels": 4},
}


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


class Net(nn.Module):
    def __init__(self, channels=8, blocks=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.stage = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def made(method=None, channels=8, **options):
    """A small net in evaluation mode whose norms have seen images and whose factors differ."""
    torch.manual_seed(0)
    net = Net(channels, blocks=3 if method == "pde" else 2)  # pde keeps the first and replaces the others
    if method is not None:
        net = pc.condense(net, method, **{**METHODS.get(method, {}), **options})
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if getattr(module, "gains", None) is not None:
            nn.init.uniform_(module.gains, 0.5, 1.5)
    images = _check.ordinary_images(64, SIZE, NOTES)
    if (gauge := gauge_of(net)) is not None:
        gauge.calibrate_([images], mean=NOTES["mean"], std=NOTES["std"])
    with torch.no_grad():
        for _ in range(3):
            net.train()(images)
    return net.eval()


def written(net, tmp_path, format="onnx", **options):
    return export(net, tmp_path / "net", format=format, input_size=SIZE, notes=NOTES, timed=False, **options)


# --- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, *METHODS])
def test_an_onnx_file_computes_what_the_net_does(method, tmp_path):
    net = made(method)
    found = written(net, tmp_path)
    assert found.max_difference <= 1e-5
    assert {"batch 1", "batch 3", "batch 17", "zeros", "black", "white", "large"} == set(found.differences)
    assert found.size_bytes == found.path.stat().st_size
    x = _check.ordinary_images(5, SIZE, NOTES)  # of a batch it was not checked with
    torch.testing.assert_close(onnx.runner(found.path.read_bytes(), 1)(x), net(x).detach(), rtol=1e-5, atol=1e-5)
    cost = measure_onnx(found.path, runs=3)
    assert (cost.input_size, cost.opset, cost.latency.runs) == (SIZE, 20, 3)
    if method in (None, "ring", "condconv"):
        assert cost.macs == pc.measure(net, SIZE).macs
    if method is None:
        # Five convolutions of 8x8 pixels: 3x8 and four times 8x8 channels of 9 taps, a bias each; the classifier.
        assert cost.macs == 64 * 9 * (24 + 4 * 64) + 24
        assert cost.stored_numbers == 9 * (24 + 4 * 64) + 5 * 8 + 27


@pytest.mark.parametrize("read", ["numbers", "channels"])
def test_a_puppet_at_one_entropy(read, tmp_path):
    """The file, with the equation in its graph, equals the net for that entropy."""
    net = made("puppet", read=read)
    x = _check.ordinary_images(4, SIZE, NOTES)
    found = written(net, tmp_path, "onnx_compact", entropy=3.0)
    wanted = pc.materialize(net, entropy=3.0)(x).detach()
    torch.testing.assert_close(onnx.runner(found.path.read_bytes(), 1)(x), wanted, rtol=1e-5, atol=1e-5)
    table = CompactNet(net, 0.0, SIZE).tables[
        0
    ]  # one of two blocks is read, and only the places of its kernels are kept
    assert sum(buffer.nbytes for buffer in table.buffers()) < 2 * 2 * 576 + 200


def test_a_puppet_decides_in_the_file():
    """Images of different levels get the outputs that the net gives them."""
    net = made("puppet")
    x = _check.ordinary_images(17, SIZE, NOTES)
    assert set(gauge_of(net).levels_of(x).tolist()) == {0, 1}
    program = trace(CompactNet(net, None, SIZE), (x[:2],), None, fixed=False).module()
    torch.testing.assert_close(program(x), net(x), rtol=1e-5, atol=1e-5)


# --- compact files ---------------------------------------------------------------------------------------------------


def test_a_compact_ring_is_about_as_small_as_its_model_file(tmp_path):
    """It holds the ring once, two numbers for each channel of a folded norm, and the arithmetic of places."""
    net = made("ring", channels=48, size=0.1)
    found = written(net, tmp_path, "onnx_compact")
    assert not found.dense
    assert found.size_bytes < 1.3 * pc.save(net, tmp_path / "net.safetensors") < found.dense_bytes / 4
    cost = measure_onnx(found.path, runs=1)
    ring = len(net.stage[0].conv1.ring.values)
    # Stem 48x27 numbers and 48 biases; four layers of the ring with a factor and a bias each channel; the classifier.
    assert ring + 48 * 28 + 4 * 2 * 48 + 49 * 3 - 3 <= cost.stored_numbers <= ring + 48 * 28 + 4 * 2 * 48 + 49 * 3 + 9
    assert cost.table_bytes < 1000
    assert cost.generating["Gather"] >= 1


@pytest.mark.parametrize(
    ("options", "row_bytes"),
    [
        # A code of 9 bits, a byte and a bit, for each of the 2,304 weights (4 layers of 8x72).
        ({"scheme": "random"}, 2304 * 9 / 8),
        # A code for each filter and each number of a filter: two bytes at most.
        ({"scheme": "block"}, 4 * (8 + 72) * 2),
        ({"scheme": "identity"}, 4 * (8 + 72) * 2),
        # A code for each window of nine, and their nine steps; a factor a layer goes into the norm's.
        ({"scheme": "windows", "gain": True}, 4 * (64 + 9) * 2),
        ({"scheme": "affine"}, 0),
        ({"scheme": "affine", "level": "block"}, 0),
        ({"scheme": "affine", "subnets": "stage.*"}, 0),
    ],
    ids=str,
)
def test_every_ring_is_stored_in_few_bits(options, row_bytes):
    net = made("ring", size=0.1, **options)
    compact = CompactNet(net, None, SIZE)
    x = _check.ordinary_images(3, SIZE, NOTES)
    torch.testing.assert_close(compact(x), net(x), rtol=1e-5, atol=1e-5)
    tables = sum(b.nbytes for n, b in compact.named_buffers() if "byte" in n or "rest" in n)
    assert tables <= row_bytes + 8  # 8 for the columns of rows that hold one weight


@pytest.mark.parametrize(("size", "dense"), [(1.0, True), (0.05, False)])
def test_a_random_ring_is_written_dense_where_that_is_smaller(size, dense, tmp_path):
    """Places and signs of a long ring take more than the kernels; a short one's do not."""
    found = written(made("ring", 16, scheme="random", size=size), tmp_path, "onnx_compact")
    assert found.dense is dense
    assert (found.size_bytes == found.dense_bytes) is dense
    assert found.size_bytes <= found.dense_bytes


def test_a_net_of_two_methods_is_dense_where_it_can_be(tmp_path):
    """CondConv layers stay, as they mix kernels for each image; the ring beside them is read once, or becomes convolutions."""
    net = pc.condense(made(), "condconv", include="*.conv2", num_experts=2)
    net = pc.condense(net, "ring", include="*.conv1", scheme="affine").eval()
    kinds = [type(module).__name__ for module in pc.materialize(net, partly=True).stage[0].children()]
    assert kinds == ["Conv2d", "BatchNorm2d", "CondConv2d", "BatchNorm2d"]
    assert written(net, tmp_path, "onnx_compact").max_difference <= 1e-5


@pytest.mark.parametrize("method", ["pde", "condconv", "involution"])
def test_a_method_without_a_compact_form_is_named(method, caplog):
    with caplog.at_level("INFO", logger="pocketcnn"):
        CompactNet(made(method), None, SIZE)
    assert [record.getMessage() for record in caplog.records if "compact" in record.name] == [
        f"no compact form of method '{method}': pocketcnn/export/compact/{method}.py is missing; its layers are exported "
        "as in a dense file"
    ]


@pytest.mark.parametrize("limit", [2, 3, 5, 16, 17, 256, 257, 1 << 18, (1 << 20) + 1, 1 << 24, (1 << 31) - 1])
def test_codes_come_back(limit):
    numbers = torch.randint(0, limit, (37,))
    numbers[0] = limit - 1
    codes = Codes(numbers, limit)
    assert torch.equal(codes(), numbers)
    bits = sum(8 * b.nbytes for b in codes.buffers())
    assert bits <= 37 * max(1, 2 * (limit - 1).bit_length()) + 8


def test_runs_of_neighbours_are_found():
    """Runs of nine neighbours with one sign each are stored as a code for each run and nine steps."""
    starts = torch.randint(0, 500, (64, 1))
    indices = ((starts + torch.arange(9)) % 500).flatten()
    signs = torch.randint(0, 2, (64, 1)).mul(2).sub(1).expand(64, 9).flatten().to(torch.int8)
    places = Places(indices, signs, [(8, 8, 3, 3)], 500)
    assert (places.heights, places.widths) == ([64], [9])
    found = places()
    assert torch.equal(found[0], indices)
    assert torch.equal(found[1], signs)


def test_nothing_of_this_machine_is_in_a_file(tmp_path):
    """Traces of the source code with paths, and shapes, which torch writes, are removed."""
    content = written(made("ring"), tmp_path, "onnx_compact").path.read_bytes()
    assert b".py" not in content
    model = onnx_package.load_model_from_string(content)
    assert not model.graph.value_info
    assert {prop.key for prop in model.metadata_props} == {"pocketcnn"}
    assert max(len(name) for node in model.graph.node for name in node.output if name != "logits") <= 3


# --- other formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ring", "condconv"])
def test_a_program_of_torch_is_loaded_again(method, tmp_path):
    net = made(method)
    found = export(net, tmp_path / "net.pt2", format="torch_export", input_size=SIZE, notes=NOTES)
    assert found.max_difference <= 1e-5
    assert [speed.batch for speed in found.speeds] == [1, 17]
    extra = {"pocketcnn": ""}
    again = torch.export.load(found.path, extra_files=extra).module()
    assert json.loads(extra["pocketcnn"])["classes"] == NOTES["classes"]
    x = _check.ordinary_images(6, SIZE, NOTES)
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)


def test_executorch_agrees(tmp_path):
    pytest.importorskip("executorch", reason="executorch is not installed")
    found = written(made("ring"), tmp_path, "executorch")
    assert found.max_difference <= 1e-5


def test_a_batch_of_one_size(tmp_path):
    found = written(made(), tmp_path, batch=4)
    assert set(found.differences) == {"batch 4", "zeros", "black", "white", "large"}
    assert measure_onnx(found.path, runs=2).latency.batch == 4
    model = onnx_package.load(str(found.path))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@pytest.mark.parametrize("opset", [18, 23])
def test_the_first_and_the_last_opset(opset, tmp_path):
    found = written(made(), tmp_path, opset=opset)
    assert found.opset == measure_onnx(found.path, runs=1).opset == opset


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_arguments(tmp_path):
    net = made()
    with pytest.raises(
        ValueError, match=r"opset 17 of ONNX cannot be written: the lowest that works is 18; leave opset"
    ):
        written(net, tmp_path, opset=17)
    with pytest.raises(ValueError, match=r"opset 99 of ONNX cannot be written: the highest is 23"):
        written(net, tmp_path, opset=99)
    with pytest.raises(ValueError, match=r"only ONNX has an opset; leave it out with format 'torch_export'"):
        written(net, tmp_path, "torch_export", opset=20)
    with pytest.raises(ValueError, match=r"no format 'tflite'; known: onnx, onnx_compact, executorch, torch_export"):
        written(net, tmp_path, "tflite")
    with pytest.raises(ValueError, match=r"Net cannot take an image of \(1, 8, 8\) .*; give its size as input_size"):
        export(net, tmp_path / "net", input_size=(1, 8, 8))
    with pytest.raises(ValueError, match=r"depends on the image's entropy; leave entropy out"):
        written(net, tmp_path, entropy=3.0)
    with pytest.raises(CannotWrite, match=r"there is no folder .*nowhere; make it first"):
        export(net, tmp_path / "nowhere" / "net.onnx", input_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_net_that_cannot_be_traced_names_the_layer(tmp_path):
    class Picky(nn.Module):
        def forward(self, x):
            return x if x.max() > 0 else -x

    net = made()
    net.stage[1] = nn.Sequential(nn.Identity(), Picky())
    with pytest.raises(
        CannotExport,
        match=r"stage\.1\.1 \(Picky\): torch\.export cannot trace it \(.*\); a net may depend on the values and",
    ):
        written(net, tmp_path)


def test_a_net_for_one_size_of_batch_names_the_layer(tmp_path):
    class Halves(nn.Module):
        def forward(self, x):
            return torch.cat([part + number for number, part in enumerate(x.split(1))])

    net = made()
    net.stage[1] = Halves()
    with pytest.raises(CannotExport, match=r"stage\.1 \(Halves\): torch\.export cannot trace it"):
        written(net, tmp_path)


def test_an_operation_without_counterpart_names_the_layer(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    net = made()
    net.stage[1] = Odd()
    with pytest.raises(CannotExport, match=r"stage\.1: aten\.special_airy_ai.*: ONNX has no counterpart for it"):
        written(net, tmp_path)


def test_a_file_that_disagrees_is_not_left_behind(tmp_path, monkeypatch):
    runner = onnx.runner
    monkeypatch.setattr(onnx, "runner", lambda content, threads, *names: lambda x: runner(content, threads)(x) + 1e-3)
    (tmp_path / "net").write_text("what was there")
    with pytest.raises(
        Disagreement, match=r"batch 1: the file's outputs are up to 0.001 from the net's, .* nothing was"
    ):
        written(made(), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


class Cancelling(nn.Module):
    """A net whose last digits are rounded away: float32 keeps three or four of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6).eval()

    def forward(self, x):
        return (self.norm(self.conv(x)) + 3000.0) - 3000.0


CHANGES = {
    "nothing": lambda net: None,
    "a kernel": lambda net: net.conv.weight[2].mul_(1.1),
    "a weight": lambda net: net.conv.weight[0, 0, 0, 0].add_(0.1),
    "a bias": lambda net: net.norm.bias[3].add_(0.1),
    "swapped channels": lambda net: net.conv.weight.copy_(net.conv.weight.flip(0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_are_held_against_the_rounding_of_the_net(change):
    net = Cancelling()
    wide = Cancelling().double().requires_grad_(False)
    wide.load_state_dict(net.state_dict())
    CHANGES[change](wide)
    inputs = _check.probes((SIZE,), NOTES, (1, 3), None)

    def run(x):
        return wide(x.double()).float()

    if change == "nothing":
        found = _check.differences(run, net, inputs)
        assert 1e-5 < found["batch 3"] < 1e-3
    else:
        with pytest.raises(
            Disagreement, match=r"^batch 1: the file's outputs are up to .* is allowed; nothing was written"
        ):
            _check.differences(run, net, inputs)


def test_rounding_is_no_excuse_where_nothing_is_left_to_check():
    class Noise(nn.Module):
        def forward(self, x):
            return (x + 1e6) - 1e6

    inputs = _check.probes((SIZE,), NOTES, (2,), None)
    with pytest.raises(Disagreement, match="batch 2"):
        _check.differences(lambda x: x, Noise(), inputs)


def test_nets_are_exported_however_their_weights_lie(tmp_path):
    net = made("ring").to(memory_format=torch.channels_last)
    net.head.weight = nn.Parameter(net.head.weight.detach().T.contiguous().T, requires_grad=False)
    assert written(net, tmp_path, "onnx_compact").max_difference <= 1e-5
    assert written(net.bfloat16(), tmp_path, "torch_export").max_difference <= 1e-5


def test_what_overflows_in_the_net_must_overflow_in_the_file():
    class Cube(nn.Module):
        def forward(self, x):
            return x**30

    inputs = {"large": (torch.tensor([[1e9, 1.0]]),)}
    assert _check.differences(Cube(), Cube(), inputs) == {"large": 0.0}
    with pytest.raises(Disagreement, match="large"):
        _check.differences(lambda x: Cube()(x).clamp(max=1e9), Cube(), inputs)


def test_equal_outputs_keep_their_names(tmp_path):
    """What is computed twice is written once, but every output can be asked for."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            return {"one": y.relu(), "same": y.relu(), "again": y.relu() * 1, "other": y.relu() + 1}

    pc.export.export(Twice(), tmp_path / "net.onnx", input_size=(3, 8, 8), timed=False)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    x = torch.randn(2, 3, 8, 8)
    one, same, again, other = session.run(["one", "same", "again", "other"], {session.get_inputs()[0].name: x.numpy()})
    assert (one == same).all()
    assert (one == again).all()
    assert abs(one + 1 - other).max() < 1e-6


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    net = made()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"exporting to ONNX needs onnxscript.*'pocketcnn\[export\]'"):
        written(net, tmp_path)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    program = trace(net, (torch.zeros(2, *SIZE),), None, fixed=False)
    with pytest.raises(MissingExtra, match=r"exporting to ExecuTorch needs executorch.*'pocketcnn\[executorch\]'"):
        executorch.to_executorch(program)


@pytest.mark.parametrize("suffix", [".onnx", ".pte", ".pt2"])
def test_exported_files_are_for_serving(suffix, tmp_path):
    file = tmp_path / f"net{suffix}"
    file.write_bytes(b"anything")
    for ask in (pc.load, pc.create_model):
        with pytest.raises(
            ExportedFile, match=r"is for serving, its net can be neither trained nor changed; give the .saf"
        ):
            ask(str(file))


# --- on the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(tmp_path):
    """The file of a small untrained net, with notes on its images and classes."""
    net = pc.create_model("mnist_net", width=2)
    pc.save(net, tmp_path / "net.safetensors", notes={
        "classes": list("0123456789"), "input_size": [1, 28, 28], "mean": [0.13], "std": [0.31], "data": "mnist",
    })  # fmt: skip
    return tmp_path / "net.safetensors"


def run(*words):
    from pocketcnn import cli

    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return left.value.code


def test_the_verb_writes_measures_and_serves(model_file, tmp_path, capsys):
    output = tmp_path / "net.onnx"
    assert not run("export", model_file, "--format", "onnx_compact", "--output", output)
    said = capsys.readouterr().out
    assert f"{output.stat().st_size:,} bytes" in said
    assert f"{model_file.stat().st_size:,} bytes" in said
    for word in ("onnx_compact, opset 20", "largest difference from the net", "batch 17:", "dense ONNX"):
        assert word in said
    assert not run("measure", output, "--runs", 2)
    said = capsys.readouterr().out
    assert "images 1x28x28" in said
    assert "stored_numbers" in said
    for words in (("train", "--model", output), ("condense", "--model", output), ("compare", "--models", output)):
        assert run(*words) == 2
        assert "ExportedFile: " in capsys.readouterr().err
    assert run("measure", output, "--method", "ring") == 2
    assert "BadUsage" in capsys.readouterr().err
    output.write_bytes(output.read_bytes()[:300])
    assert run("measure", output) == 2
    assert "BrokenFile" in capsys.readouterr().err


def test_the_example_serves_without_torch(model_file, tmp_path):
    """The example gives the net's answers for the same pixels."""
    from PIL import Image

    pixels = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    names = []
    for number, image in enumerate(pixels):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image.numpy()).save(names[-1])
    net = pc.load(model_file)
    notes = pc.checkpoint.read_header(model_file)["notes"]
    export(net, tmp_path / "net.onnx", notes=notes, timed=False)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import serve_onnx; serve_onnx.main(sys.argv[2:])\n"
        "print(sorted({'torch', 'pocketcnn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "examples"), str(tmp_path / "net.onnx"), *names, "--top", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *lines, modules = done.stdout.splitlines()
    assert modules == "[]"
    shares, best = net((pixels[:, None].float() / 255 - 0.13) / 0.31).softmax(1).max(1)
    wanted = [f"{best[i]} {100 * shares[i]:.1f}%" for i in range(2)]
    assert [line.split("  ")[1] for line in lines] == wanted
