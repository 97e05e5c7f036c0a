"""Training any net on any data set: one configuration, one function, one folder of plain files per run.

All functions are imported on first use, so that reading a configuration does not import Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pocketcnn.train.config import PRESETS, TrainConfig
from pocketcnn.train.hardware import Hardware

if TYPE_CHECKING:
    from pocketcnn.train.evaluation import evaluate as evaluate
    from pocketcnn.train.groups import parameter_groups as parameter_groups
    from pocketcnn.train.loop import fit as fit
    from pocketcnn.train.optimizers import make_optimizer as make_optimizer
    from pocketcnn.train.optimizers import turned_kernels as turned_kernels

__all__ = [
    "PRESETS",
    "Hardware",
    "TrainConfig",
    "evaluate",
    "fit",
    "make_optimizer",
    "parameter_groups",
    "turned_kernels",
]
_FILES = {
    "fit": "loop",
    "evaluate": "evaluation",
    "make_optimizer": "optimizers",
    "parameter_groups": "groups",
    "turned_kernels": "optimizers",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'pocketcnn.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pocketcnn.train.{_FILES[name]}"), name)
