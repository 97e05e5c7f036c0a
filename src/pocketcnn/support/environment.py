"""The machine and the packages of a run."""

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pocketcnn.support.version import __version__


def environment() -> dict[str, Any]:
    """Describes this machine, its packages and this command: what a reader needs to judge a run's times and to repeat it."""
    packages = ("torch", "numpy", "lightning", "torchmetrics", "datasets")
    return {
        "pocketcnn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in packages},
        "command": shlex.join(["pocketcnn" if _is_ours(sys.argv[0]) else Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _is_ours(program: str) -> bool:
    return Path(program).parts[-2:] == ("pocketcnn", "__main__.py")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
