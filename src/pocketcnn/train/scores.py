"""What a training lowers and counts: cross entropy and accuracy, or what the user gives for nets of other outputs."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pocketcnn.support.calls import tensors_in

Loss = Callable[[Any, Tensor], Tensor]
"""Takes what the net returns and the labels [batch]; returns a number that can be differentiated."""
Metric = Callable[[Any, Tensor], Tensor]
"""Takes what the net returns and the labels [batch]; returns a score in [0, 1], the higher the better, or one for each image."""


@dataclass(frozen=True)
class Scores:
    """The loss and the metric of a training; None for cross entropy and accuracy of the first output."""

    loss: Loss | None = None
    metric: Metric | None = None

    @property
    def usual(self) -> bool:
        """True if the net must return scores of classes."""
        return self.loss is None and self.metric is None

    def loss_of(self, output: Any, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch."""
        if self.loss is not None:
            return self.loss(output, labels)
        return F.cross_entropy(first(output).float(), labels, label_smoothing=label_smoothing)

    def metric_of(self, output: Any, labels: Tensor) -> Tensor:
        """The score of a batch: for each image, or their mean."""
        if self.metric is not None:
            return self.metric(output, labels)
        return (first(output).argmax(1) == labels).float()

    def described(self) -> dict[str, str]:
        """Names the functions, for records; empty for the usual ones."""
        given = {"loss": self.loss, "metric": self.metric}
        return {name: _named(value) for name, value in given.items() if value is not None}


USUAL = Scores()


def _named(function: Any) -> str:
    """Names a function, the same in every process; of one without a name its code tells it from others."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if "<lambda>" in name and code is not None:
        name += hashlib.sha256(code.co_code + repr(code.co_names + code.co_consts).encode()).hexdigest()[:8]
    return name


def first(output: Any) -> Tensor:
    """The first floating-point tensor that a net returns; of nets with side outputs usually the scores of the classes."""
    return output if isinstance(output, Tensor) else tensors_in(output)[0]
