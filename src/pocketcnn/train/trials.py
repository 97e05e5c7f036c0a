"""Trying convolutions in another process, whose death is a message here.

The process imports torch alone and is told shapes alone: no net travels, so it works for nets of any program, in a
notebook, and where there is no `fork`.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_CHILD = Path(__file__).with_name("_trial.py")
_SECONDS = 300.0
_MOST_IMAGES = 32  # of a trial; more would only take longer


def first_failure(calls: Sequence[Mapping[str, Any]], dtype: torch.dtype, layout: torch.memory_format) -> str:
    """Trains convolutions in another process, and says where it ended before its time; "" if all went well.

    What was tried is remembered for the life of this process.

    Args:
        calls: each with the fields of `pocketcnn.train.crashes.Convolution`.
        dtype: of the arithmetic.
        layout: of images and kernels.
    """
    fewer = [{**call, "input": (min(call["input"][0], _MOST_IMAGES), *call["input"][1:])} for call in calls]
    task = {
        "calls": fewer,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": str(layout).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    return _tried(json.dumps(task))


@functools.lru_cache(maxsize=256)
def _tried(task: str) -> str:
    calls = json.loads(task)["calls"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)], input=task, capture_output=True, text=True, timeout=_SECONDS,
            env=environment, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"it cannot be tried in another process ({type(error).__name__})"
    passed = sum(line == "passed" for line in done.stdout.splitlines())
    if done.returncode == 0 and passed == len(calls):
        return ""
    call = calls[min(passed, len(calls) - 1)]
    maps = f"a convolution of {call['kernel']} on {call['input']}"
    return f"a trial of {maps} in another process {_end(done)}"


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """Says how a process ended: by which signal, or with which error."""
    if done.returncode < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"died by {known.get(-done.returncode, f'signal {-done.returncode}')}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"failed ({last[:200]})"
