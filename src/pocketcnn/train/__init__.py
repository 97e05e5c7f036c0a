"""Training any net on any data set: one configuration, one function, one folder of plain files per run.

`fit` and `evaluate` are imported on first use, so that reading a configuration does not import Lightning.
"""

from typing import TYPE_CHECKING, Any

from pocketcnn.train.config import PRESETS, TrainConfig
from pocketcnn.train.hardware import Hardware

if TYPE_CHECKING:
    from pocketcnn.train.evaluation import evaluate as evaluate
    from pocketcnn.train.loop import fit as fit

__all__ = ["PRESETS", "Hardware", "TrainConfig", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    if name not in ("fit", "evaluate"):
        raise AttributeError(f"module 'pocketcnn.train' has no attribute {name!r}")
    from pocketcnn.train import evaluation, loop

    return getattr(loop if name == "fit" else evaluation, name)
