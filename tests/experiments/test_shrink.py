"""Shrinking a net of one's own: the budget is kept, the file loads, what was done is not done again."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.data import from_tensors
from pocketcnn.errors import BadData, NothingFits
from pocketcnn.experiments.shrink import candidates
from pocketcnn.experiments.shrink import candidates as ways
from pocketcnn.export import measure_onnx
from pocketcnn.support.files import read_json, write_json
from pocketcnn.train import TrainConfig, fit


class Own(nn.Module):
    """A small net that knows nothing of this package."""

    def __init__(self, width=8):
        super().__init__()
        convs = [
            nn.Conv2d(1, width, 3, padding=1),
            nn.Conv2d(width, 2 * width, 3),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(2)),
        ]
        self.body = nn.Sequential(
            *(part for conv in convs for part in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()))
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
        self.both, self.out = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x, y):
        return self.out(torch.relu(self.both(torch.relu(torch.cat([self.one(x), self.two(y)], 1)))))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    torch.manual_seed(0)
    net = Own()
    config = TrainConfig(epochs=8, batch_size=32, lr=0.1, precision="float32", channels_last="off")
    fit(net, digits, config, tmp_path_factory.mktemp("own"), test=False)
    return net.eval()


SETTINGS = dict(minutes=0.05, train=TrainConfig(lr=0.02, batch_size=32, precision="float32", channels_last="off"))


@pytest.fixture(scope="module")
def shrunk(trained, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrunk")
    before = [p.detach().clone() for p in trained.parameters()]
    found = pc.shrink(trained, digits, max_bytes="4.5k", output=folder, **SETTINGS)
    assert all(p.equal(q) for p, q in zip(before, trained.parameters(), strict=True)), "the net is left alone"
    return found


def test_the_budget_is_kept_and_little_is_lost(shrunk, trained, digits):
    assert shrunk.bytes_after == shrunk.path.stat().st_size <= 4500
    assert shrunk.bytes_before > 25_000
    assert shrunk.after["accuracy"] > shrunk.before["accuracy"] - 0.05
    assert len(shrunk.after["by_class"]) == 10
    small = pc.load(shrunk.path, base=Own())
    assert pc.train.evaluate(small, digits)["test_accuracy"] == pytest.approx(shrunk.after["accuracy"])
    assert pc.checkpoint.read_header(shrunk.path)["notes"]["mean"] == list(digits.mean)


def test_what_was_tried_is_written_down(shrunk):
    labels = [one["label"] for one in shrunk.candidates]
    assert any("zeros" in label for label in labels)
    assert any(", windows of " in label for label in labels)
    assert any("but 1 plain" in label for label in labels)
    assert all(one["bytes"] <= 4500 for one in shrunk.candidates)
    page = shrunk.page.read_text()
    assert "Where the bytes are" in page
    assert f"{shrunk.bytes_after:,}" in page
    assert "names and description" in page
    assert (shrunk.page.parent / "sensitivity.svg").is_file()
    assert shrunk.onnx_bytes == shrunk.onnx.stat().st_size
    assert "test accuracy" in str(shrunk)


def test_the_same_call_reads_what_it_finished(shrunk, trained, digits, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("done again")

    folder = shrunk.page.parent
    monkeypatch.setattr(candidates, "windows", never)
    monkeypatch.setattr("pocketcnn.experiments.shrink.judges.condensed", never)
    again = pc.shrink(trained, digits, max_bytes=4500, output=folder, **SETTINGS)
    assert (again.label, again.bytes_after, again.after) == (shrunk.label, shrunk.bytes_after, shrunk.after)
    with pytest.raises(ValueError, match=r"holds another shrinking \(max_bytes differs"):
        pc.shrink(trained, digits, max_bytes=3000, output=folder, **SETTINGS)


def test_what_fits_as_it_is_is_only_rounded(trained, digits, tmp_path):
    found = pc.shrink(trained, digits, max_bytes=18_000, output=tmp_path, onnx=False, **SETTINGS)
    assert found.label == "plain float16"
    assert found.onnx is None
    assert found.after["accuracy"] == pytest.approx(found.before["accuracy"], abs=0.01)


def test_a_method_that_was_asked_for_takes_the_largest_size_that_fits(trained, digits, tmp_path):
    found = pc.shrink(
        trained,
        digits,
        max_bytes=5000,
        method="ring:seed=3",
        storage="float16",
        output=tmp_path,
        onnx=False,
        **SETTINGS,
    )
    assert found.label.startswith("ring:seed=3,size=0.")
    assert 4600 < found.bytes_after <= 5000


def test_a_net_of_two_inputs_without_labels(tmp_path):
    torch.manual_seed(0)
    net, inputs = TwoInputs(), (torch.randn(64, 1, 8, 8), torch.randn(64, 2, 8, 8))
    found = pc.shrink(net, inputs, max_bytes=2500, minutes=0.05, output=tmp_path)
    assert found.bytes_after <= 2500
    assert measure_onnx(found.onnx, runs=1).input_size == ((1, 8, 8), (2, 8, 8))
    assert found.before == {"error": 0.0}
    scores = next(one for one in found.candidates if one["label"] == found.label)
    assert scores["at the end"] > scores["at the start"], "it learnt"
    assert pc.load(found.path, base=TwoInputs())(*(one[:2] for one in inputs)).shape == (2, 1, 8, 8)


def test_a_call_that_was_killed_before_a_score_resumes(trained, digits, tmp_path):
    settings = {**SETTINGS, "max_bytes": 4500, "method": "ring:scheme=windows", "onnx": False, "output": tmp_path}
    whole = pc.shrink(trained, digits, **settings)
    record = read_json(tmp_path / "shrink.json")
    del record["found"]["scores"], record["found"]["result"]
    write_json(tmp_path / "shrink.json", record)
    again = pc.shrink(trained, digits, **settings)
    assert (again.label, again.after) == (whole.label, whole.after)
    with pytest.raises(ValueError, match=r"holds another shrinking \(notes differs"):
        pc.shrink(trained, digits, notes={"mean": [0.1], "std": [0.3]}, **settings)


def test_zeros_that_an_optimizer_moves_do_not_exceed_the_budget(trained, digits, tmp_path):
    muon = dataclasses.replace(SETTINGS["train"], optimizer="muon", small_epochs=20, epochs=20)
    found = pc.shrink(
        trained, digits, max_bytes=5000, method="plain", minutes=0.02, train=muon, onnx=False, output=tmp_path
    )
    assert found.bytes_after <= 5000


def test_frozen_weights_stay_and_what_fits_is_left_as_it_is(trained, digits, tmp_path):
    net = copy.deepcopy(trained)
    net.body[0].weight.requires_grad_(False)
    found = pc.shrink(
        net, digits, max_bytes=4500, method="ring:scheme=windows", onnx=False, output=tmp_path / "a", **SETTINGS
    )
    small = pc.load(found.path, base=Own())
    assert not small.body[0].weight.requires_grad
    torch.testing.assert_close(small.body[0].weight, net.body[0].weight, atol=0.01, rtol=0.01)
    whole = pc.shrink(
        trained, 3 * torch.randn(8, 1, 8, 8), max_bytes="1M", minutes=0.01, onnx=False, output=tmp_path / "b"
    )
    assert whole.after["error"] < 1e-9, "norms keep their statistics"


def test_budgets_and_images_that_do_not_fit(trained, digits, tmp_path):
    with pytest.raises(
        NothingFits, match=r"900 bytes are too few for Own: .* takes \d,\d+, the most in names and description"
    ):
        pc.shrink(trained, digits, max_bytes=900, output=tmp_path / "a", **SETTINGS)
    with pytest.raises(ValueError, match="'much' is no size"):
        pc.shrink(trained, digits, max_bytes="much", output=tmp_path / "b", **SETTINGS)
    with pytest.raises(ValueError, match="must be more than 0"):
        pc.shrink(trained, digits, max_bytes=9000, minutes=0, output=tmp_path / "c")
    with pytest.raises(NothingFits, match=r"with condconv its file takes \d\d,"):
        pc.shrink(trained, digits, max_bytes=5000, method="condconv", output=tmp_path / "f", **SETTINGS)
    with pytest.raises(ValueError, match="a mean without a std"):
        pc.shrink(trained, digits, max_bytes=9000, notes={"mean": [0.1]}, output=tmp_path / "g", **SETTINGS)
    with pytest.raises(ValueError, match="3 examples are too few"):
        pc.shrink(trained, torch.randn(3, 1, 8, 8), max_bytes=9000, output=tmp_path / "h")
    colour = from_tensors(torch.zeros(40, 3, 8, 8), torch.arange(40) % 10)
    with pytest.raises(BadData, match="teacher cannot take them"):
        pc.shrink(trained, colour, max_bytes=5000, output=tmp_path / "d", **SETTINGS)
    with pytest.raises(BadData, match="knows other classes than digits has"):
        pc.shrink(trained, digits, max_bytes=5000, notes={"classes": ["a", "b"]}, output=tmp_path / "e", **SETTINGS)


def test_of_windows_of_several_lengths_the_nearest_that_fits_is_taken(caplog):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(32, 32, 3) for _ in range(8)))  # 6 layers of 9,216 weights are replaced

    def taken(max_bytes, method=None):
        if method is None:
            return ways.windows(net, max_bytes, "int8", {})
        return ways.of_method(net, "ring", method, max_bytes, "int8", {})

    few, many = taken(27_000), taken(45_000)
    caplog.clear()
    with caplog.at_level("INFO", "pocketcnn"):
        assert taken(27_000) == few
    errors = {float(record.args[1]): record.args[0] for record in caplog.records if "energy" in record.msg}
    assert len(errors) > 1
    assert errors[min(errors)] == few.label
    assert few.options["window"] > many.options["window"]
    assert 0 <= 27_000 - few.bytes < 300
    assert taken(45_000, {"scheme": "windows", "window": 18}).options["window"] == 18
    assert taken(15_000) is None
