"""Records of runs: committed ones are read, damaged ones end in one line."""

import dataclasses
import json
from pathlib import Path

import pytest

from pocketcnn.errors import BadData, BrokenFile, ForeignFile
from pocketcnn.experiments.reproduce.runs import read_runs
from pocketcnn.support.runs import (
    planned,
    read_config,
    read_curve,
    read_environment,
    read_result,
    read_results,
    read_speeds,
)
from pocketcnn.train.folder import train_config

RESULTS = Path(__file__).parents[2] / "results"
CURVE = "epoch,validation_accuracy\n1,0.5\n2,0.75\n"


def test_all_committed_records_are_read():
    assert len(read_runs(RESULTS)) > 100
    folders = [path.parent for path in RESULTS.rglob("config.json")]
    for folder in folders:
        assert len(read_curve(folder)) == read_result(folder)["epochs"], folder
        assert read_environment(folder)["packages"]
        assert train_config(read_config(folder)["train"], folder).epochs >= 1
    assert len(folders) > 90
    assert all(planned(path.parent)["rows"] for path in RESULTS.rglob("comparison.json"))
    assert all(read_speeds(path.parent) for path in RESULTS.rglob("speed.json"))


@pytest.fixture(scope="module")
def record():
    return next(path for path in sorted(RESULTS.rglob("result.json")) if (path.parent / "config.json").exists())


@pytest.mark.parametrize(("change", "match"), [
    ({"test_accuracy": 1.5}, r"result\.json: Expected float <= 1\.0 at test_accuracy; restore it, or delete its run"),
    ({"test_accuracy": float("nan")}, "test_accuracy"),
    ({"test_accuracy": "high"}, r"Expected float \| null, got str at test_accuracy"),
    ({"cost": None}, "Expected object, got null at cost"),
    ({"latency": {"median_ms": 0}}, "latency.median_ms"),
    ({"identity": {"label": ["a"]}}, "identity.label"),
    ({"epochs": 10**40}, "epochs"),
    ({"seed": -1}, "seed"),
    ({"name": None}, "name"),
])  # fmt: skip
def test_results_with_other_entries(tmp_path, record, change, match):
    (tmp_path / "result.json").write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(BrokenFile, match=match):
        read_results(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_records_in_other_encodings_are_read(tmp_path, record, encoding):
    (tmp_path / "result.json").write_text(record.read_text(), encoding=encoding)
    assert read_result(tmp_path) == json.loads(record.read_text())


def test_results_that_no_finished_run_wrote(tmp_path, record):
    with pytest.raises(FileNotFoundError, match=r"there is no result\.json"):
        read_result(tmp_path)
    (tmp_path / "result.json").mkdir()
    with pytest.raises(ForeignFile, match="not a plain file"):
        read_results(tmp_path)
    (tmp_path / "result.json").rmdir()
    found = json.loads(record.read_text())
    (tmp_path / "result.json").write_text(json.dumps({key: found[key] for key in found if key != "test_accuracy"}))
    assert read_result(tmp_path)["epochs"] == found["epochs"]
    with pytest.raises(ForeignFile, match="not the result of a run of pocketcnn with a test accuracy"):
        read_results(tmp_path)
    with pytest.raises(BadData, match=r"no environment\.json"):
        read_environment(tmp_path)


@pytest.mark.parametrize("text", [
    CURVE + "2,0.8\n", "epoch,validation_accuracy\n2,0.75\n", CURVE + "4,0.8\n", CURVE.replace(",", ";"), CURVE + "3\n",
    CURVE + "3,much\n", CURVE + "3,nan\n", CURVE + "3,1.5\n", CURVE + "three,0.5\n", "1,0.5\n2,0.75\n", CURVE + "\x00", '"' + CURVE,
])  # fmt: skip
def test_curves_that_no_run_wrote(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(BrokenFile, match=r"metrics\.csv: .*; restore it, or delete its run to train it again"):
        read_curve(tmp_path)


@pytest.mark.parametrize("text", [CURVE, "\ufeff" + CURVE, CURVE.replace("\n", "\r\n"), CURVE.rstrip()])
def test_curves_are_read(tmp_path, text):
    (tmp_path / "metrics.csv").write_bytes(text.encode())
    assert read_curve(tmp_path) == [0.5, 0.75]


def test_settings_of_another_type(tmp_path):
    for settings, match in (
        ({"lr": "fast"}, "Expected float, got str at lr"),
        ({"epochs": 0}, r"epochs must lie in \[1, 1000000\], got 0"),
    ):
        with pytest.raises(BrokenFile, match=match):
            train_config(settings, tmp_path)
    assert dataclasses.asdict(train_config({}, tmp_path))["epochs"] == 20
