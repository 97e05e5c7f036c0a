"""The batches of one device, from any position: exact resuming depends on it."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class Loader:
    """Goes through the training images, epoch after epoch; its state is the position of the next batch.

    The order depends on the epoch, not on how often this object was iterated: a run's batches depend only on its seed and
    the position.
    """

    def __init__(self, split: Any, batch_size: int, *, seed: int, rank: int, world: int) -> None:
        self._split = split
        self._batches = {"batch_size": batch_size, "seed": seed, "rank": rank, "world": world}
        self._length = split.steps(batch_size, world)
        self._epoch = self._step = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the rest of the current epoch."""
        for batch in self._split.batches(epoch=self._epoch, start=self._step, **self._batches):
            self._step += 1
            if self._step == self._length:
                self._epoch, self._step = self._epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the position of the next batch."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Moves to a position from `state_dict`."""
        self._epoch, self._step = state["epoch"], state["step"]


class Share:
    """Goes through a split once, from first to last; this device gets its share of the images."""

    def __init__(self, split: Any, batch_size: int, *, rank: int, world: int) -> None:
        self._split = split
        self._batches = {"batch_size": batch_size, "rank": rank, "world": world}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._split.in_order(**self._batches)
