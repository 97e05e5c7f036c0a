"""The training batches of one device, from any position on: what exact resuming rests on."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class Loader:
    """Goes through a split epoch after epoch; its state is the position of the next batch.

    An order belongs to an epoch, not to a pass of this object: what a run sees depends on its seed and the position alone.
    """

    def __init__(self, split: Any, batch_size: int, *, seed: int, rank: int, world: int) -> None:
        self._split = split
        self._batches = {"batch_size": batch_size, "seed": seed, "rank": rank, "world": world}
        self._length = split.steps(batch_size, world)
        self._epoch = self._step = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the epoch that the position is in."""
        for batch in self._split.batches(epoch=self._epoch, start=self._step, **self._batches):
            self._step += 1
            if self._step == self._length:
                self._epoch, self._step = self._epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the batch after the last one given is."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Moves to a position that `state_dict` told."""
        self._epoch, self._step = state["epoch"], state["step"]


class Share:
    """All images of a split once, from first to last, of which this device sees its share."""

    def __init__(self, split: Any, batch_size: int, *, rank: int, world: int) -> None:
        self._split = split
        self._batches = {"batch_size": batch_size, "rank": rank, "world": world}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._split.in_order(**self._batches)
