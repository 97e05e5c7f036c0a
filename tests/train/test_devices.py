"""Two CPU processes over gloo train as one: started by Lightning, by torchrun, and as SLURM starts them."""

import csv
import dataclasses
import json
import re
import signal

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.data import load
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.devices import norms_of, restore_norms
from pocketcnn.train.hardware import Hardware, with_changes
from processes import finish, finish_both, finish_pair, free_port, start

TWO = {"devices": 2, "accelerator": "cpu"}
SAY_STATE = "import atexit, hashlib\natexit.register(lambda: print('state ' + hashlib.sha256(b''.join(t.numpy().tobytes() " \
            "for t in net.state_dict().values())).hexdigest()))"  # fmt: skip

# Convolutions with norms that do not depend on the batch; one convolution on a ring, one with routed experts.
WITHOUT_STATISTICS = """
class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)
torch.manual_seed(0)
layers = [nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()]
for norm in (Frozen, lambda channels: nn.GroupNorm(2, channels)):
    layers += [nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU()]
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
net = pc.condense(pc.condense(net, "ring", include="3"), "condconv", include="6").train()
"""


def curve(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [[float(row[name]) for name in ("train_loss", "validation_loss")] for row in csv.DictReader(file)]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run in this process, with twice the batch."""
    folder, made = tmp_path_factory.mktemp("alone") / "run", {"torch": torch, "nn": nn, "pc": pc}
    exec(WITHOUT_STATISTICS, made)
    config = TrainConfig(epochs=2, batch_size=64, precision="float32", channels_last="off")
    with pytest.warns(UserWarning, match="in eval mode"):
        fit(made["net"], load("digits", limit=640), config, folder)
    return folder


PAIR = {"epochs": 2, "batch_size": 32}
# The second process must not write; here it would raise.
ONE_WRITER = """
if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "SLURM_PROCID")):
    import pocketcnn.support.files as files
    def refuse(*_): raise SystemExit("a second writer")
    files.os = type("os", (), {"replace": refuse, "fsync": refuse, "getpid": os.getpid})
"""
# The second process must not resolve `auto`; it reads what the first one chose.
FIRST_CHOOSES = """
import dataclasses
from pocketcnn.train import folder
def choose(config, *_):
    assert os.environ["LOCAL_RANK"] == "0"
    return dataclasses.replace(config, precision="float32", channels_last="off")
folder.resolve = choose
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a run in two processes, as Lightning starts them, and what they printed."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    return folder, finish(folder, config=PAIR, run=TWO, before=WITHOUT_STATISTICS + SAY_STATE + ONE_WRITER)


@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "slurm"])
def test_two_processes_train_as_one_with_twice_the_batch(alone, pair, tmp_path, launcher):
    how = {"config": PAIR, "run": TWO, "before": WITHOUT_STATISTICS + SAY_STATE + ONE_WRITER}
    folder = tmp_path / "run"
    if launcher == "lightning":
        folder, output = pair
    elif launcher == "torchrun":  # which starts both at once
        torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port())
        how["config"] = {**PAIR, "precision": "auto", "channels_last": "auto"}
        how["before"] += FIRST_CHOOSES
        output = finish(folder, launcher=torchrun, **how)
    else:
        shared = {
            "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "test", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        }  # fmt: skip
        tasks = [
            start(folder, environment={**shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}, **how) for rank in "01"
        ]
        output = finish_both(tasks)
    states = re.findall(r"state ([0-9a-f]{64})", output)
    assert len(states) == 2, output
    assert len(set(states)) == 1, "ring, router and all else are the same on both"
    for mine, other in zip(curve(folder), curve(alone), strict=True):
        assert mine == pytest.approx(other, rel=2e-5)
    expected = weights(alone)
    for name, found in weights(folder).items():
        assert torch.allclose(found, expected[name], atol=2e-5), name


def test_with_batch_norm_processes_keep_the_same_weights_and_evaluate_the_net_that_is_kept(tmp_path):
    output = finish_pair(tmp_path / "run", config={"epochs": 1}, run=TWO, before=SAY_STATE)
    states = re.findall(r"state ([0-9a-f]{64})", output)
    assert len(states) == 2, output
    assert len(set(states)) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["world"] == [2, 1]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    net = pc.load(tmp_path / "run" / "model.safetensors")
    found = evaluate(net, load("digits", limit=640))
    assert found["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert found["test_loss"] == pytest.approx(result["test_loss"], rel=1e-4)


def test_a_signal_to_one_process_stops_both_and_the_run_resumes(pair, tmp_path):
    ask = (
        WITHOUT_STATISTICS
        + """
if os.environ.get("LOCAL_RANK") == "1":
    steps = []
    def ask(module, inputs, output):
        if module.training:
            steps.append(1)
            if len(steps) == 4:
                signal.raise_signal(signal.SIGTERM)
    net.register_forward_hook(ask)
"""
    )
    output = finish(tmp_path / "cut", config=PAIR, run=TWO, before=ask, code=75)
    assert "Preempted stopped in epoch 1 after step 4" in output
    finish_pair(tmp_path / "cut", config=PAIR, run=TWO, before=WITHOUT_STATISTICS)
    whole = pair[0]
    assert curve(whole) == curve(tmp_path / "cut")
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "cut" / "model.safetensors").read_bytes()


def test_nets_of_mixed_depth_train_on_several_devices(tmp_path):
    """If no image of one device reaches a block, the other devices must not wait for its gradients."""
    before = 'data = load("digits", limit=80)\nnet = pc.condense(net, "puppet", levels=7)'
    finish_pair(tmp_path / "run", config={"epochs": 1, "batch_size": 4}, run=TWO, before=before)


def test_all_processes_stop_when_one_diverges(tmp_path):
    """Only the second process sees a NaN; the first one must not wait for ever."""
    poison = """
if os.environ.get("LOCAL_RANK") == "1":
    net.register_forward_hook(lambda m, i, y: y * float("nan") if m.training else None)
"""
    output = finish_pair(tmp_path / "run", config={"epochs": 1}, run=TWO, before=poison, code=1)
    assert "epoch 1, step 1: the loss of another device is not finite" in output
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_run_belongs_to_its_number_of_devices(few, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(net, few, config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(world; world was \[1, 1\], now \[1, 2\]"):
        fit(net, few, config, tmp_path / "run", num_nodes=2)
    with pytest.raises(ValueError, match=r"other settings \(lr; lr was 0.1, now 0.2"):
        fit(net, few, dataclasses.replace(config, lr=0.2), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": "2,3", "accelerator": "cpu"}, r"devices='2,3': this machine has"),
        ({"devices": 10_000, "accelerator": "cpu"}, r"devices=10000: this machine has \d+ CPU cores, one per process"),
        ({"sync_batchnorm": True, "accelerator": "cpu"}, "sync_batchnorm needs GPUs"),
    ],
)
def test_devices_that_the_machine_lacks_are_refused(few, tmp_path, options, message):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=message):
        fit(net, few, TrainConfig(epochs=1), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_the_machine_lacks_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="accelerator 'gpu': this machine has no GPU"):
        fit(nn.Flatten(), few, TrainConfig(), tmp_path / "run", accelerator="gpu")


def test_keywords_replace_fields_of_the_hardware(few, tmp_path):
    found = with_changes(Hardware(num_nodes=2), {"devices": 3, "save_every": 90})
    assert found == Hardware(devices=3, num_nodes=2, save_minutes=1.5)
    with pytest.raises(ValueError, match="devices=10000: this machine has"):
        fit(nn.Flatten(), few, TrainConfig(), tmp_path / "run", hardware=Hardware(accelerator="cpu"), devices=10_000)
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'device'; those of the hardware are devices, num_"
    ):
        fit(nn.Flatten(), few, TrainConfig(), tmp_path / "run", device=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables", [{"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job"}]
)
def test_more_processes_than_devices_are_refused(few, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="2 processes were started for 1 devices on 1 machines"):
        fit(net, few, TrainConfig(epochs=1), tmp_path / "run", accelerator="cpu")


def test_the_norms_of_a_net_come_back_after_they_were_synchronised():
    from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

    net = pc.create_model("resnet20", in_channels=1, width=0.25)
    norms = norms_of(net)
    synchronised = TorchSyncBatchNorm()
    changed = synchronised.revert(synchronised.apply(net))
    changed.bn1.running_mean.fill_(0.5)
    assert type(changed.bn1) is not nn.BatchNorm2d
    restore_norms(changed, norms)
    assert {type(module) for name, module in changed.named_modules() if name in norms} == {nn.BatchNorm2d}
    assert torch.equal(changed.bn1.running_mean, torch.full((4,), 0.5))


def test_signals_are_left_as_they_were(few, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off")
    fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), few, config, tmp_path / "run")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_a_run_on_several_machines_must_know_them(few, tmp_path, monkeypatch, caplog):
    from pocketcnn.train.devices import check_machines

    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="num_nodes=2: nothing says where the other machines are; start by torchrun"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), few, TrainConfig(epochs=1), tmp_path / "run", num_nodes=2)
    check_machines(Hardware())
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NODE_RANK", "1")
    with caplog.at_level("INFO", "pocketcnn"):
        check_machines(Hardware(num_nodes=2, devices=3))
    assert "this is machine 1 of 0 to 1; waiting at 10.0.0.1:29500 for 6 processes in all" in caplog.text
