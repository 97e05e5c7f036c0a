import dataclasses
import json

import pytest
import torch

from pocketcnn.cli import main
from pocketcnn.experiments import bench
from pocketcnn.experiments.bench import goals, nets
from pocketcnn.experiments.bench.goals import Goal
from pocketcnn.experiments.bench.nets import Configuration
from pocketcnn.methods import METHODS
from pocketcnn.models.recipes import create_model
from pocketcnn.train import crashes

TINY = dataclasses.replace(
    bench.QUICK, shapes=((2, 16, 4, 4),), solver_shape=(2, 16, 4, 4), deep_batch=4, wide_batch=2, ring_batch=2,
    puppet_batches=(16,), image_side=8, width=0.125, layer_seconds=0, net_seconds=0,
)  # fmt: skip


def test_a_run_leaves_records_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "QUICK", TINY)
    with pytest.raises(SystemExit) as left:
        main(["bench", "--quick", "--output", str(tmp_path)])
    shown, progress = capsys.readouterr()
    assert left.value.code == 0, progress
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "table.md", "bench.svg"}
    assert (tmp_path / "table.md").read_text() in shown
    assert "pde 2x16x4x4 float32 forward: obvious" in progress
    assert "bench has no" not in progress, "a method without layers, nets or goals"
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["environment"]["threads"] == 1
    # The solver's own shape, forward and backward; six methods at one shape in two dtypes, forward and backward.
    assert len(record["layers"]) == 2 + 6 * 2 * 2
    assert len(record["nets"]) == 2 * (3 + 5)
    # 2 solver, 2 involution, 1 CondConv; 2 nets; 2 ring, 2 puppet, 1 memory, 2 loader.
    assert len(record["goals"]) == 5 + 2 + 7
    assert all(row["limit"]["ms"] > 0 and not row["failures"] for row in record["layers"])
    assert all(row["speed"]["median"] > 0 and row["peak_bytes"] > 0 for row in record["nets"])
    met = [goal["met"] for goal in record["goals"]]
    assert None in met
    assert any(isinstance(each, bool) for each in met)


def test_sections_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(nets, "groups", lambda settings: ())
    found = bench.run(TINY, tmp_path, only=["nets"])
    assert (found.layers, found.nets, found.goals) == ((), (), ())
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "table.md"}
    with pytest.raises(ValueError, match="no section 'net'; known: layers, nets, goals"):
        bench.run(TINY, tmp_path, only=["net"])


def test_methods_without_nets_and_goals_are_named(monkeypatch):
    assert nets.without_net(nets.groups(TINY)) == []
    assert nets.without_net(()) == list(METHODS)
    found = [Goal(f"{method}: fast", 1.0, "x") for method in METHODS]
    assert goals.without_goal(found) == []
    monkeypatch.setitem(METHODS, "sixth", METHODS["ring"])
    assert nets.without_net(nets.groups(TINY)) == ["sixth"]
    assert goals.without_goal(found) == ["sixth"]


def test_what_fails_in_a_trial_is_written_down(monkeypatch):
    def runner(net, images, mode, configuration):
        if configuration.compiled:
            raise RuntimeError("no compiler here\nat all")
        return lambda: None

    monkeypatch.setattr(nets, "runner", runner)
    settings = dataclasses.replace(TINY, compiled=True)
    trials = list(nets._try_out(None, None, "training", thorough=True, settings=settings, late=float("inf")))
    assert len({trial.configuration for trial in trials}) == 8
    assert [t.failure for t in trials] == 4 * [""] + 4 * ["RuntimeError: no compiler here"]
    late = list(nets._try_out(None, None, "training", thorough=False, settings=settings, late=0.0))
    assert [t.failure for t in late] == ["", "", "not tried: no time was left"]
    assert str(Configuration("bfloat16", True, True)) == "bfloat16, channels last, compiled"


def test_a_configuration_that_would_end_the_process_is_written_down(monkeypatch):
    monkeypatch.setattr(crashes.KnownCrash, "applies", lambda row: True)
    net = create_model("resnet20", width=0.25)
    last = nets.Configuration(channels_last=True)
    trial = nets._trial(net, torch.randn(2, 3, 8, 8), "training", last)
    assert trial.milliseconds is None
    assert "not tried: a 1x1 convolution of stride 2 on 4 channels" in trial.failure
    assert nets._trial(net.eval(), torch.randn(2, 3, 8, 8), "inference", last).milliseconds
