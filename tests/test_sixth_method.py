"""A method that the package has never heard of goes through all of it; a wing that has no file for it says so in one line."""

import inspect
import json
import logging

import pytest
import torch

import pocketcnn as pc
import test_contract
from pocketcnn.cli import main
from pocketcnn.experiments.bench import QUICK, layers, nets
from pocketcnn.experiments.search import Budgets, Space
from pocketcnn.experiments.search import worker as work
from pocketcnn.report import markdown, read_results, summarize
from pocketcnn.report.figures import method_colour
from pocketcnn.train import TrainConfig

pytestmark = pytest.mark.usefixtures("lowrank", "one_round")
NET = {"in_channels": 1, "num_classes": 10, "width": 0.25}
ONE_EPOCH = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off")
PROMISES = [test for name, test in vars(test_contract).items() if name.startswith("test_")]


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code in (0, None)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda test: test.__name__)
def test_it_keeps_the_contract(promise, request):
    names = set(inspect.signature(promise).parameters) - {"method", "dtype"}
    given = {name: request.getfixturevalue(name) for name in names}
    kinds = (
        [{"dtype": torch.float64}, {"dtype": torch.bfloat16}]
        if "dtype" in inspect.signature(promise).parameters
        else [{}]
    )
    for kind in kinds:
        promise("lowrank", **given, **kind)


def test_flags_plan_counts_and_files(tmp_path, capsys):
    run("plan", "--method", "lowrank", "--rank", "3", "--include", "layer1")
    assert "lowrank(rank=3): 6 of 21 convolutions" in capsys.readouterr().out
    run("condense", "--method", "lowrank", "--help")
    shown = capsys.readouterr().out
    assert "--rank INT" in shown
    assert "Columns of the first factor." in shown
    assert "lowrank: every kernel is a product of two thin matrices (rank=2)" in shown
    run("condense", "--method", "lowrank", "--rank", "1", "--output", tmp_path / "small.safetensors")
    assert f"{(tmp_path / 'small.safetensors').stat().st_size:,} bytes" in capsys.readouterr().out
    cost = pc.measure(pc.load(tmp_path / "small.safetensors"))
    plain = pc.measure(pc.create_model("resnet20"))
    assert cost.trainable_params < 0.1 * plain.trainable_params
    assert cost.generated_params == plain.generated_params
    # One multiply-add for each weight that is made, of rank 1: 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 512 + 2048.
    assert cost.macs == plain.macs + 269_824


def test_compare_report_pictures_export_and_publishing(tmp_path, capsys, few, monkeypatch, caplog):
    monkeypatch.setattr("pocketcnn.data.load", lambda *_, **__: few)
    rows = pc.compare.net_specs(["resnet20"], ["plain", "lowrank:rank=1"], NET, equal_size=True)
    assert [row.label for row in rows][:2] == ["resnet20 width=0.25 plain", "resnet20 width=0.25 lowrank:rank=1"]
    assert rows[2].rival_of == rows[1].label
    pc.compare.compare(few, rows, ONE_EPOCH, tmp_path / "runs")
    assert "| resnet20 width=0.25 lowrank:rank=1 |" in markdown(summarize(read_results(tmp_path / "runs")))
    run("report", tmp_path / "runs")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "lowrank:rank=1" in page
    colours = [method_colour(name) for name in pc.METHODS]
    assert len(set(colours)) == 6, "and none is another method's"
    capsys.readouterr()

    [folder] = (tmp_path / "runs").glob("*lowrank*/seed0")
    run("picture", folder, "--output", tmp_path / "pictures")
    told = capsys.readouterr()
    assert "maps.png" in told.out
    assert told.err.count("no pictures of method 'lowrank': pocketcnn/pictures/lowrank.py is missing") == 1
    run("similarity", folder, "--images", "20", "--output", tmp_path / "alike")

    net = pc.load(folder / "model.safetensors")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="pocketcnn"):
        found = pc.export.export(net, tmp_path / "net.onnx", format="onnx_compact", input_size=(1, 8, 8), timed=False)
    assert found.max_difference < 1e-4
    assert sum("lowrank" in record.getMessage() for record in caplog.records) == 1
    # It is cheaper as two thin convolutions than as one, and says so: latency and files are those of the two.
    served, plain = pc.surgery.as_served(net, fold=True), pc.create_model("resnet20", **NET)
    torch.testing.assert_close(served(few.test.images / 255), net(few.test.images / 255), atol=1e-4, rtol=1e-4)
    assert pc.measure(served, (1, 8, 8)).macs < 0.3 * pc.measure(plain, (1, 8, 8)).macs
    whole = pc.export.export(plain, tmp_path / "plain.onnx", input_size=(1, 8, 8), timed=False)
    assert found.size_bytes < 0.6 * whole.size_bytes
    run("publish", folder, "--output", tmp_path / "hub")
    assert "every kernel is a product of two thin matrices" in (tmp_path / "hub" / "README.md").read_text()


def test_search(tmp_path, few, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(work, "_ROUNDS", 1)
    from pocketcnn.experiments import search

    assert "lowrank" in search.METHODS_TRIED
    space = Space.of("resnet20", NET, ["lowrank"])
    budgets = Budgets(max_bytes=100_000)
    pc.search.search(few, ONE_EPOCH, tmp_path / "search", trials=1, space=space, budgets=budgets)
    trials = json.loads((tmp_path / "search" / "trials.json").read_text())["trials"]
    assert any(part["method"] == "lowrank" and 1 <= part["options"]["rank"] <= 8 for t in trials for part in t["parts"])


def test_bench_says_what_it_leaves_out(caplog):
    with caplog.at_level(logging.WARNING, logger="pocketcnn"):
        layers.layers_timed()
    assert [record.getMessage() for record in caplog.records] == [
        "bench has no layer cases for method 'lowrank'; add experiments/bench/cases/lowrank.py"
    ]
    assert nets.without_net(nets.groups(QUICK)) == ["lowrank"]
