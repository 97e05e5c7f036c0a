"""The one door to Lightning and torchmetrics: where they are missing, the error says which extra brings them."""

from typing import Any

from pocketcnn.support.optional import optional_import


def _engine(module: str) -> Any:
    return optional_import(module, extra="train", purpose="training")


pl = _engine("lightning.pytorch")
environments = _engine("lightning.pytorch.plugins.environments")
TorchCheckpointIO: Any = _engine("lightning.pytorch.plugins.io").TorchCheckpointIO
WeightAveraging: Any = _engine("lightning.pytorch.callbacks").WeightAveraging
MeanMetric: Any = _engine("torchmetrics").MeanMetric
MulticlassAccuracy: Any = _engine("torchmetrics.classification").MulticlassAccuracy
