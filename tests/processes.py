"""Trainings in their own processes, which tests kill, stop or run side by side."""

import os
import subprocess
import sys

# A test inserts its changes before `fit`. The net is small: a step takes milliseconds.
SCRIPT = """
import os, signal, sys, torch, pocketcnn as pc
from torch import nn
from pocketcnn.data import load
from pocketcnn.train import TrainConfig, fit
from pocketcnn.errors import PocketError
torch.set_num_threads(1); torch.manual_seed(0)
net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
data, run = load("digits", limit=640), {{}}
config = TrainConfig(**{{**dict(batch_size=32, precision="float32", channels_last="off"), **{config!r}}})
{before}
try:
    result = fit(net, data, config, sys.argv[1], **{{**run, **{run!r}}})
    print("done", result.get("test_loss"))
except (PocketError, ValueError) as error:
    print(type(error).__name__, error)
    sys.exit(getattr(error, "exit_code", 2))
"""


def start(folder, *, config=None, run=None, before="", launcher=(), environment=None, **options) -> subprocess.Popen:
    """Starts a training of a few digits into a folder."""
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT.format(config=config or {}, run=run or {}, before=before))
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}, **options,
    )  # fmt: skip


def finish(folder, *, code=0, **how) -> str:
    """Runs a training to its end and returns what it printed."""
    process = start(folder, **how)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    return output
