"""Damaged run folders are read rightly or end in one of our errors: the short form of benchmarks/hostile_runs.py."""

import hashlib
import importlib.util
import io
from pathlib import Path

import pytest
import torch

from pocketcnn.errors import BrokenFile
from pocketcnn.train.checkpoints import AtomicCheckpointIO

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile_runs.py"


@pytest.fixture(scope="module")
def hostile():
    spec = importlib.util.spec_from_file_location("hostile_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "report", module.tables)  # figures take seconds
        yield module


@pytest.mark.usefixtures("one_round")
def test_damaged_folders_end_in_right_results_or_our_errors(hostile, tmp_path):
    ends = []
    for number, (name, make, read) in enumerate(hostile.run_trials(7, 40)):
        end, words = hostile.judge(make, hostile.tables if read.__name__ == "report" else read, tmp_path / str(number))
        assert end != "fault", f"{name}: {words}"
        ends.append(end)
    assert {"right", "BrokenFile"} <= set(ends)


class Code:
    def __reduce__(self):
        return Path.touch, (Path("pocketcnn-was-here"),)


def test_a_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": Code()}, buffer)
    (tmp_path / "last.ckpt").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(BrokenFile, match="damaged checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "pocketcnn-was-here").exists()
