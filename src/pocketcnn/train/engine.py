"""The only import of Lightning and torchmetrics: if they are missing, the error names the extra that installs them."""

import logging
import warnings
from pathlib import Path
from typing import Any

from pocketcnn.errors import MissingExtra
from pocketcnn.support.optional import optional_import
from pocketcnn.train.hardware import Logger


def _engine(module: str) -> Any:
    return optional_import(module, extra="train", purpose="training")


pl = _engine("lightning.pytorch")
environments = _engine("lightning.pytorch.plugins.environments")
TorchCheckpointIO: Any = _engine("lightning.pytorch.plugins.io").TorchCheckpointIO
WeightAveraging: Any = _engine("lightning.pytorch.callbacks").WeightAveraging
MeanMetric: Any = _engine("torchmetrics").MeanMetric
MulticlassAccuracy: Any = _engine("torchmetrics.classification").MulticlassAccuracy


def tracker(kind: Logger, folder: Path) -> Any:
    """Returns the Lightning logger of a tracker, False for none.

    Raises:
        MissingExtra: the tracker's own package is missing; no extra of this package installs it.
    """
    if kind == "csv":
        return False
    try:
        loggers = {"tensorboard": pl.loggers.TensorBoardLogger, "wandb": pl.loggers.WandbLogger}
        return loggers[kind](save_dir=folder)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"logger {kind!r} needs the package {kind}; pip install {kind}") from error


class quiet_lightning(warnings.catch_warnings):
    """Hides Lightning's tips, and its warnings about choices made here on purpose."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")
        for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
            logging.getLogger(package).setLevel(logging.ERROR)
        return entered
