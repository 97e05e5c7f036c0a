"""Trainings in their own processes, which tests kill, stop or run side by side.

They are forked from a process that has imported torch and Lightning, which takes seconds each time. It has one thread of
its own, so that a fork of it is whole.
"""

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import time

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

# Forks for every request; answers questions about its children, as only a parent may. A child leaves the loop and runs the
# script as if it had been started with it.
PARENT = """
import json, os, runpy, socket, sys
import torch, sklearn.datasets
import pocketcnn.data, pocketcnn.surgery, pocketcnn.train.loop, pocketcnn.zoo
if os.path.isdir("/proc/self/task"):  # arrow's allocator has a thread, and sees to forks itself
    names = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
    assert len([name for name in names if name != "jemalloc_bg_thd"]) == 1, names
asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, handles, *_ = socket.recv_fds(asked, 1 << 20, 1)
    if not message:
        sys.exit()
    request = json.loads(message)
    if "pid" in request:
        pid, status = os.waitpid(request["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if not answer:
            break
        os.close(handles[0])
    asked.send(json.dumps(answer).encode())
asked.close()
os.dup2(handles[0], 1), os.dup2(handles[0], 2), os.close(handles[0])
os.environ.clear(), os.environ.update(request["environment"])
sys.argv = request["words"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@functools.cache
def _parent() -> socket.socket:
    """The end of a connection to the process that forks; it leaves when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(theirs.fileno())], pass_fds=[theirs.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


class Forked:
    """A forked process, used like a `subprocess.Popen` whose output is text."""

    def __init__(self, words, environment, handle) -> None:
        self.returncode, self.stdout = None, None
        writer = handle
        if handle is None:
            reader, writer = os.pipe()
            self.stdout = reader
        request = {"words": list(words), "environment": environment}
        socket.send_fds(_parent(), [json.dumps(request).encode()], [writer])
        self.pid = json.loads(_parent().recv(64))
        if handle is None:
            os.close(writer)

    def poll(self):
        if self.returncode is None:
            _parent().send(json.dumps({"pid": self.pid}).encode())
            self.returncode = json.loads(_parent().recv(64))
        return self.returncode

    def wait(self, timeout=200):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=200):
        """What it and the processes that it started have printed, once all have ended."""
        end, parts = time.monotonic() + timeout, []
        while select.select([self.stdout], [], [], max(0, end - time.monotonic()))[0]:
            if not (part := os.read(self.stdout, 1 << 16)):
                break
            parts.append(part)
        os.close(self.stdout)
        output = b"".join(parts).decode()
        try:
            self.wait(max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise subprocess.TimeoutExpired(error.cmd, timeout, output) from None
        return output, None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)


def fork(script, *words, environment=None, output=None) -> Forked:
    """Runs the Python file `script` with these words in a process of its own.

    Args:
        script: path of the file.
        *words: its arguments.
        environment: variables beside those of this process.
        output: an open file for what it prints; by default `communicate` gives it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return Forked([str(script), *map(str, words)], environment, None if output is None else output.fileno())


def start(folder, *, config=None, run=None, before="", launcher=(), environment=None):
    """Starts a training of a few digits into a folder; with a launcher, like torchrun, in a process that is not forked."""
    script = folder.with_suffix(".py")
    text = SCRIPT.format(config=config or {}, run=run or {}, before=before)
    if not script.exists() or script.read_text() != text:  # the other process of a pair may be reading it
        script.write_text(text)
    if not launcher:
        return fork(script, folder, environment=environment)
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )  # fmt: skip


def finish(folder, *, code=0, **how) -> str:
    """Runs a training to its end and returns what it printed."""
    process = start(folder, **how)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code, output
    return output


def finish_pair(folder, *, code=0, **how) -> str:
    """Runs a training to its end in two processes, as torchrun would start them, and gives what both printed."""
    shared = {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip
    return finish_both(
        [start(folder, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}, **how) for rank in "01"], code
    )


def finish_both(pair, code=0) -> str:
    """What two processes have printed that train as one; if the first fails, the second would wait for ever."""
    try:
        output, _ = pair[0].communicate(timeout=200)
        assert pair[0].returncode == code, output
        output += pair[1].communicate(timeout=60)[0]
        assert pair[1].returncode == code, output
    finally:
        for process in pair:
            process.kill()
    return output


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
