"""Runs that are killed, stopped or damaged resume, and end bit-identical to an uninterrupted run."""

import csv
import dataclasses
import logging
import random
import signal
import time

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import pocketcnn as pc
from pocketcnn.cost import tensors_by_all_names
from pocketcnn.data import load
from pocketcnn.errors import BadData, BrokenFile
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.checkpoints import AtomicCheckpointIO, newest_checkpoint
from processes import finish, start

ALL_STATE = {
    "ema_decay": 0.9, "clip_norm": 1.0, "label_smoothing": 0.1, "crop": 1, "cutout": 2, "small_epochs": 2,
    "schedule": "one_cycle",
}  # fmt: skip
SAVE_ALWAYS = {"save_every": 0.0}
STOPPED = {**ALL_STATE, "epochs": 2, "small_epochs": 1}


def tiny(seed=0):
    torch.manual_seed(seed)
    return pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)


def run_whole(folder, config):
    """Trains in this process what the other processes train."""
    plain = {"batch_size": 32, "precision": "float32", "channels_last": "off"}
    fit(tiny(), load("digits", limit=640), TrainConfig(**{**plain, **config}), folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run_whole(tmp_path_factory.mktemp("uninterrupted") / "run", STOPPED)


def rows(folder):
    """The rows of `metrics.csv` without the columns that are times."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: row[key] for key in row if "second" not in key} for row in csv.DictReader(file)]


def assert_equal_runs(one, other):
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert rows(one) == rows(other)


def wait_for_a_new_checkpoint(folder, process):
    path = folder / "last.ckpt"
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.time() + 90
    while not (path.exists() and path.stat().st_mtime_ns > before):
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.005)


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(tmp_path, request):
    """The processes save after every step, so that many kills hit the writing of a checkpoint."""
    kills = request.config.getoption("--kills")
    config = {**ALL_STATE, "epochs": 4 + kills}
    run_whole(tmp_path / "whole", config)
    for _ in range(kills):
        process = start(tmp_path / "cut", config=config, run=SAVE_ALWAYS)
        wait_for_a_new_checkpoint(tmp_path / "cut", process)
        moment = random.SystemRandom().uniform(0, 0.4)
        print(f"killed {moment:.4f} s after a checkpoint")
        time.sleep(moment)
        assert process.poll() is None, "the run was over before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(tmp_path / "cut", config=config, run=SAVE_ALWAYS)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*")), "the leftovers of killed writers are removed"


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, name):
    """Killed before the new file is whole, and between the two renamings, when only the previous checkpoint exists."""
    before = f"""
import os, signal
original, calls = os.{name}, []
def die(*arguments):
    if {name!r} == "fsync" or "ckpt" in str(arguments[0]):
        calls.append(arguments)
    if len(calls) == 13:
        if {name!r} == "replace":
            assert str(arguments[0]).endswith(".partial") and not os.path.exists(arguments[1])
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
os.{name} = die
"""
    finish(tmp_path / "cut", config=STOPPED, run=SAVE_ALWAYS, before=before, code=-signal.SIGKILL)
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert any(name.endswith(".partial") for name in left)
    assert ("last.ckpt" in left) == (name == "fsync")
    finish(tmp_path / "cut", config=STOPPED, run=SAVE_ALWAYS)
    assert_equal_runs(uninterrupted, tmp_path / "cut")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "Interrupted stopped in epoch 2 after step 5"),
     (signal.SIGUSR1, 75, "Preempted stopped in epoch 2 after step 5")],
    ids=["ctrl-c", "usr1"],
)  # fmt: skip
def test_asked_to_stop_a_run_saves_and_ends_with_the_same_bits(tmp_path, uninterrupted, number, code, said):
    """The signal comes in the fifth step of the second epoch, when no checkpoint is due: the signal itself saves."""
    ask = f"""
steps = []
def ask(module, inputs, output):
    steps.extend([1] * module.training)
    if module.training and len(steps) == 25:
        os.kill(os.getpid(), {int(number)})
net.register_forward_hook(ask)
"""
    output = finish(tmp_path / "run", config=STOPPED, before=ask, code=code)
    assert said in output
    assert "is saved; repeat the command to resume" in output
    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert kept["position"] == {"epoch": 1, "step": 5}
    assert len(rows(tmp_path / "run")) == 1
    finish(tmp_path / "run", config=STOPPED)
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_full_disk_stops_the_run_with_the_old_checkpoint_intact(tmp_path):
    """A real limit on file size, below the size of a checkpoint."""
    run_whole(tmp_path / "run", {"epochs": 1})
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "config.json").unlink()
    limit = len(before) // 2
    before_it = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    output = finish(tmp_path / "run", config={"epochs": 3}, code=2, before=before_it)
    assert "CannotWrite" in output
    assert "the file that was there is unchanged" in output
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


# --- damaged checkpoints, in this process ----------------------------------------------------------------------------


SHORT = TrainConfig(epochs=3, batch_size=32, precision="float32", channels_last="off")


AVERAGED = dataclasses.replace(SHORT, ema_decay=0.9)


@pytest.fixture(scope="module")
def finished(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(tiny(), few, AVERAGED, folder)
    return folder


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same run before its result was written."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "environment.json", "metrics.csv", "last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


def cut_short(content):
    return content[: len(content) // 2]


def one_bit(content):
    """Flips a bit of the weights, which the archive's own reader would not notice."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_short, one_bit, lambda content: b""], ids=["cut", "bit", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one_with_a_warning(few, finished, unfinished, damage, caplog):
    last = unfinished / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="pocketcnn"):
        fit(tiny(), few, AVERAGED, unfinished)
    assert "last.ckpt: damaged checkpoint" in caplog.text
    assert "resuming from previous.ckpt, epoch 2" in caplog.text
    assert_equal_runs(finished, unfinished)


def test_when_both_checkpoints_are_damaged_it_is_an_error(few, unfinished):
    for name in ("last.ckpt", "previous.ckpt"):
        (unfinished / name).write_bytes(cut_short((unfinished / name).read_bytes()))
    with pytest.raises(BrokenFile, match=r"last\.ckpt: damaged checkpoint .*delete it to start this run afresh"):
        fit(tiny(), few, AVERAGED, unfinished)


def test_a_run_stopped_after_its_last_epoch_keeps_the_average(few, finished, unfinished):
    """No step is left to train, so Lightning does not call the end of training."""
    fit(tiny(), few, AVERAGED, unfinished)
    assert_equal_runs(finished, unfinished)


def test_a_damaged_checkpoint_never_replaces_a_good_one(few, unfinished, monkeypatch):
    (unfinished / "last.ckpt").write_bytes(b"")
    good = (unfinished / "previous.ckpt").read_bytes()
    original, found = AtomicCheckpointIO.save_checkpoint, []

    def before_saving(self, *arguments, **options):
        found.append([path.read_bytes() for path in sorted(unfinished.glob("*.ckpt"))])
        original(self, *arguments, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", before_saving)
    fit(tiny(), few, AVERAGED, unfinished)
    assert found[0] == [good]


def test_averaging_leaves_the_indices_of_a_ring_alone(few, tmp_path):
    net = pc.condense(tiny(), "ring", size=0.3)
    result = fit(net, few, dataclasses.replace(AVERAGED, epochs=2), tmp_path / "run")
    fresh = pc.condense(tiny(), "ring", size=0.3)
    trained, kept = (
        [vars(m)[name] for m in made.modules() if isinstance(m, ParameterRing) for name in m.constants]
        for made in (net, fresh)
    )
    assert len(trained) == 2
    assert all(map(torch.equal, trained, kept))
    assert not any("indices" in name for name, _ in net.named_buffers())
    stored = evaluate(pc.load(tmp_path / "run" / "model.safetensors"), few)
    assert stored["test_loss"] == pytest.approx(result["test_loss"], rel=1e-4)


@pytest.mark.parametrize(("method", "decay"), [("ring", 0.0), ("ring", 0.9), ("puppet", 0.9)])
def test_checkpoints_with_a_shared_tensor_under_the_names_of_all_its_owners_resume(few, tmp_path, method, decay):
    """Those of version 0.1 are like that."""
    config = dataclasses.replace(SHORT, epochs=2, ema_decay=decay)

    def begun(folder):
        net = pc.condense(tiny(), method)

        def stop(rows):
            raise KeyboardInterrupt

        with pytest.raises(SystemExit):
            fit(net, few, config, folder, on_epoch=stop)
        return net

    for name in ("one", "all"):
        net = begun(tmp_path / name)
    path, kept = tmp_path / "all" / "last.ckpt", AtomicCheckpointIO()
    content = kept.load_checkpoint(path)
    every = tensors_by_all_names(nn.ModuleDict({"net": net}))
    for kind in ("state_dict", "current_model_state"):  # the second beside an average
        if stored := content.get(kind):
            content[kind] = {
                name: next(stored[other] for other in stored if every.get(other) is tensor)
                for name, tensor in every.items()
            }
            assert len(content[kind]) > len(stored)
    assert ("current_model_state" in content) is (decay > 0)
    kept.save_checkpoint(content, path)
    for name in ("one", "all"):
        fit(pc.condense(tiny(), method), few, config, tmp_path / name)
    assert_equal_runs(tmp_path / "one", tmp_path / "all")


def test_checkpoints_of_wrapped_blocks_resume(few, tmp_path):
    def wrapped():
        net = pc.condense(tiny(), "ring")
        for number, block in enumerate(net.layer1):
            net.layer1[number] = checkpoint_wrapper(block)
        return net

    def stop(rows):
        raise KeyboardInterrupt

    config = dataclasses.replace(SHORT, epochs=2)
    with pytest.raises(SystemExit):
        fit(wrapped(), few, config, tmp_path / "cut", on_epoch=stop)
    fit(wrapped(), few, config, tmp_path / "cut")
    fit(wrapped(), few, config, tmp_path / "whole")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_checkpoint(tmp_path) is None


# --- teachers --------------------------------------------------------------------------------------------------------


def test_a_teacher_pulls_the_net_towards_its_outputs(few, finished, tmp_path):
    """A net with the teacher's own weights, which learns from it alone at a rate near 0, has almost no loss."""
    config = TrainConfig(epochs=1, batch_size=32, lr=1e-9, precision="float32", channels_last="off", augment=False,
                         teacher=str(finished / "model.safetensors"), teacher_weight=1.0)  # fmt: skip
    same = pc.load(finished / "model.safetensors").train()
    for module in same.modules():  # batch statistics would make the nets differ
        module.momentum = 0.0 if hasattr(module, "momentum") else None
    far = fit(tiny(1), few, config, tmp_path / "far")
    near = fit(same, few, config, tmp_path / "near")
    losses = [float(rows(tmp_path / name)[0]["train_loss"]) for name in ("near", "far")]
    assert losses[0] < 0.5 * losses[1]
    assert far["train"]["teacher"] == near["train"]["teacher"] == str(finished / "model.safetensors")


def test_the_teacher_belongs_to_the_run(few, finished, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes((finished / "model.safetensors").read_bytes())
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off", teacher=str(teacher))
    fit(tiny(), few, config, tmp_path / "run")
    net = pc.load(teacher)
    torch.nn.init.zeros_(net.fc.weight)
    from pocketcnn.checkpoint.notes import ImageNotes

    pc.save(net, teacher, notes=ImageNotes.of(few).as_dict())
    with pytest.raises(ValueError, match="holds a run with other settings \\(teacher_hash"):
        fit(tiny(), few, config, tmp_path / "run")


def test_a_teacher_of_other_classes_is_refused(few, tmp_path):
    net = pc.create_model("resnet20", in_channels=1, num_classes=4)
    pc.save(net, tmp_path / "t.safetensors", notes={"classes": ["a", "b", "c", "d"], "mean": [0.5], "std": [0.5]})
    config = TrainConfig(epochs=1, teacher=str(tmp_path / "t.safetensors"))
    with pytest.raises(BadData, match="does not say what it was trained on"):
        fit(tiny(), few, config, tmp_path / "run")
    notes = {"classes": ["a", "b", "c", "d"], "mean": [0.5], "std": [0.5], "input_size": [1, 8, 8]}
    pc.save(net, tmp_path / "t.safetensors", notes=notes)
    with pytest.raises(BadData, match="knows other classes than digits has"):
        fit(tiny(), few, config, tmp_path / "run")
    notes |= {"classes": list(few.classes), "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    pc.save(net, tmp_path / "t.safetensors", notes=notes)
    with pytest.raises(BadData, match=r"takes images of \[3, 32, 32\], those of digits are \[1, 8, 8\]"):
        fit(tiny(), few, config, tmp_path / "run")
