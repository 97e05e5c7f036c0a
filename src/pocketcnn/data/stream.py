"""Splits that do not fit in memory: parquet shards, decoded while they are read; each device reads a part of its own.

A training epoch deals whole row groups to the workers of all devices, so that nothing is read twice. It mixes the rows
of a few row groups at a time. The order of the images follows from row counts alone: an epoch can be entered at any
step without reading the earlier images, and continues exactly as an epoch read from its beginning.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle, islice
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pocketcnn.data.augment import random_crop
from pocketcnn.data.decode import RawImage, Reading, decode_all, decode_image, in_one_range
from pocketcnn.data.sets import Images
from pocketcnn.data.tables import column_of, no_path, opened, raw_image
from pocketcnn.errors import BadData, BadImage, PocketError, WorkerDied
from pocketcnn.support.signals import STOP, present

_log = logging.getLogger(__name__)
_WINDOW = 4  # row groups whose rows are mixed, and that a worker holds at a time
_SAMPLED = 64  # at most so many row groups are read for a sample
_CHILD_ENDED = present("SIGCHLD")  # how torch hears of dead workers, where there is such a signal
_PlacedPixels = tuple[int, np.ndarray | BadImage]  # an image's place in the split, and its pixels or why it has none
_ReadBatch = tuple[Tensor, Tensor, list[str]]  # images, labels, and the errors of images that were left out
_Producer = Callable[[int, Tensor], Iterator[_ReadBatch]]  # the batches of a worker, which notes the place it reads


@dataclass(frozen=True)
class RowGroup:
    """Rows of a parquet file that are read together: group `number` of the file, which begins with row `row`."""

    file: str
    number: int
    row: int
    rows: int


class Stream:
    """A split that stays in parquet shards and is decoded while it is read.

    Args:
        groups: the row groups, in order. The rows of all groups are numbered through; an image's place is its number.
        labels: int64 labels of all images, by place.
        column: the parquet column that holds the images.
        reading: options for decoding; `image_size` and `channels` must be given.
        min_area: least share of an image that a training crop shows, in (0, 1].
        workers: processes that read, for each device; with 0 the images are read between the steps.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        labels: Tensor,
        column: str,
        reading: Reading,
        *,
        min_area: float = 0.35,
        workers: int = 0,
    ) -> None:
        if reading.image_size is None or reading.channels is None:
            raise ValueError("a stream needs image_size and channels: they cannot be known before all images are read")
        self.groups, self.labels, self.column, self.reading = tuple(groups), labels, column, reading
        self.min_area, self.workers = min_area, workers
        self.image_shape = (reading.channels, reading.image_size, reading.image_size)
        self._ends = np.cumsum([group.rows for group in groups])

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int, world: int = 1) -> int:
        """Training steps of an epoch on `world` devices; images that do not fill a batch on all are left out."""
        return max(1, len(self) // (batch_size * world))

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One device's batches of a training epoch, in random order, each image a random crop.

        Every worker reads row groups of its own, and begins them again if they end before the epoch does. A crop
        depends on seed, epoch and image alone; the order depends also on the numbers of devices and workers.
        A batch with a skipped image is filled up with rows of the next batch. The next batch keeps its rows, so those
        rows come twice.

        Args:
            batch_size: images per batch.
            seed: seed of the order and of the crops.
            epoch: number of the epoch, from 0; each has an order and crops of its own.
            start: step to begin with; earlier steps are not read.
            rank: index of this device.
            world: number of devices.
        Returns:
            For each step from `start` to the last, images [batch, channels, height, width] as uint8 and labels
            [batch] as int64.
        Raises:
            BadData: fewer row groups than workers; or, while reading, a damaged file.
            BadImage: an image that cannot be decoded, unless bad images are skipped.
            WorkerDied: a reading process died; the message tells what it was reading.
        """
        _check_part(batch_size, rank, world, start, epoch)
        parts = world * max(1, self.workers)
        if len(self.groups) < parts:
            raise BadData(
                f"{len(self.groups)} row groups for {world} devices with {max(1, self.workers)} workers each, but "
                "every worker needs one; use fewer workers or devices, or write the files with smaller row groups"
            )
        key = (seed, epoch)
        training = partial(self._training, batch_size=batch_size, key=key, start=start, rank=rank, world=world)
        return self._all_batches(training, start)

    def in_order(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """One device's share of all images, in order and each once: resized by the shorter side, cropped in the centre.

        Args:
            batch_size: images per batch; the last batch, and one with skipped images, may have fewer.
            rank: index of this device; its share is one unbroken stretch of the images.
            world: number of devices.
        Returns:
            Batches of images and labels, as `batches` does.
        Raises:
            BadData, BadImage, WorkerDied: as `batches` does.
        """
        _check_part(batch_size, rank, world)
        return self._all_batches(partial(self._evaluation, batch_size=batch_size, rank=rank, world=world), 0)

    def sample(self, count: int) -> Images:
        """About `count` images, evenly spaced from first to last, from at most 64 row groups; cropped in the centre.

        Raises:
            BadData, BadImage: as `batches` does.
        """
        pixels, labels = self.decoded_sample(count)
        [pixels], _ = in_one_range([pixels])
        return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))

    def decoded_sample(self, count: int) -> tuple[list[np.ndarray], list[int]]:
        """Pixels and labels of a sample; pixels are of 16 bits where an image has them and `reading` has no `bits`."""
        groups = _evenly(len(self.groups), _SAMPLED)
        places = np.concatenate([self._places(group) for group in groups])
        chosen = places[_evenly(len(places), count)].tolist()
        rows = self._encoded(chosen, torch.empty((), dtype=torch.int64))
        pixels, labels, _ = decode_all((raw for _, raw in rows), self.reading)
        if not pixels:
            raise BadImage(f"{self.groups[0].file}: none of {len(chosen)} images of this split can be decoded")
        return pixels, labels

    def _places(self, number: int) -> np.ndarray:
        """Places of all images of row group `number`."""
        return np.arange(self._ends[number] - self.groups[number].rows, self._ends[number])

    def _find(self, place: int) -> tuple[int, int]:
        """Index of the row group that holds an image, and the image's row in that group."""
        number = int(np.searchsorted(self._ends, place, side="right"))
        return number, place - int(self._ends[number]) + self.groups[number].rows

    def _encoded(self, places: Iterable[int], current: Tensor) -> Iterator[tuple[int, RawImage]]:
        """Encoded images by place; `current` always holds the place of the image that is being read."""
        tables: dict[int, Any] = {}
        for place in places:
            current.fill_(place)
            number, row = self._find(place)
            group = self.groups[number]
            if number not in tables:
                if len(tables) == _WINDOW:
                    del tables[next(iter(tables))]  # the group read first: its window is done
                tables[number] = _read(group, self.column)
            where = f"{group.file} row {group.row + row}"
            yield place, raw_image(tables[number][row].as_py(), where, int(self.labels[place]), no_path)

    def _decoded(self, places: Iterable[int], current: Tensor, key: tuple[int, int] | None) -> Iterator[_PlacedPixels]:
        """Decoded images by place; random crops if there is a key (seed, epoch)."""
        for place, raw in self._encoded(places, current):
            pixels = decode_image(raw, replace(self.reading, image_size=None) if key else self.reading)
            if isinstance(pixels, BadImage):
                if not self.reading.skip_bad:
                    raise pixels
            elif key:
                random = np.random.default_rng(np.random.SeedSequence((*key, place)))
                pixels = random_crop(pixels, self.image_shape[1], self.min_area, random)
            yield place, pixels

    def _batch(self, rows: list[_PlacedPixels]) -> _ReadBatch:
        """Puts the images of some rows and their labels into tensors, and lists the errors of the others."""
        good = [(place, pixels) for place, pixels in rows if not isinstance(pixels, BadImage)]
        images = np.array([pixels for _, pixels in good], dtype=np.uint8).reshape(len(good), *self.image_shape)
        labels = self.labels[torch.tensor([place for place, _ in good], dtype=torch.int64)]
        return torch.from_numpy(images), labels, [str(pixels) for _, pixels in rows if isinstance(pixels, BadImage)]

    def _shuffled(self, part: int, parts: int, key: tuple[int, int], skip: int) -> Iterator[int]:
        """Places of one part's images in the order of an epoch, without end, from number `skip` on."""
        # The spawn keys keep these random streams apart from those of the crops, and from one another.
        order = np.random.default_rng(np.random.SeedSequence(key, spawn_key=(0,))).permutation(len(self.groups))
        mine = order[part::parts].tolist()
        skip %= sum(self.groups[group].rows for group in mine)
        windows = [mine[first : first + _WINDOW] for first in range(0, len(mine), _WINDOW)]
        for number, window in cycle(enumerate(windows)):
            places = np.concatenate([self._places(group) for group in window])
            random = np.random.default_rng(np.random.SeedSequence(key, spawn_key=(1, part, number)))
            yield from random.permutation(places)[skip:].tolist()
            skip = max(0, skip - len(places))

    def _training(
        self, worker: int, current: Tensor, *, batch_size: int, key: tuple[int, int], start: int, rank: int, world: int
    ) -> Iterator[_ReadBatch]:
        """One worker's batches of a training epoch: every step that is its turn, from `start` on."""
        workers = max(1, self.workers)
        first = start + (worker - start) % workers  # worker w makes steps w, w + workers, ...
        part, parts = rank * workers + worker, world * workers
        rows = self._decoded(self._shuffled(part, parts, key, first // workers * batch_size), current, key)
        ahead: list[_PlacedPixels] = []  # from the first row of this step on, even if the step before used it too
        for _ in range(first, self.steps(batch_size, world), workers):
            seen = good = 0
            while good < batch_size:
                if seen == len(ahead):
                    ahead.append(next(rows))
                good += not isinstance(ahead[seen][1], BadImage)
                seen += 1
                if not good and seen > len(self):
                    raise BadImage(f"none of a worker's images can be decoded; the last: {ahead[-1][1]}")
            yield self._batch(ahead[:seen])
            del ahead[:batch_size]

    def _evaluation(
        self, worker: int, current: Tensor, *, batch_size: int, rank: int, world: int
    ) -> Iterator[_ReadBatch]:
        """One worker's batches of a device's share, in order."""
        first, end = rank * len(self) // world, (rank + 1) * len(self) // world
        begins = range(first + worker * batch_size, end, max(1, self.workers) * batch_size)
        steps = [range(begin, min(begin + batch_size, end)) for begin in begins]
        rows = self._decoded(chain.from_iterable(steps), current, None)
        for step in steps:
            yield self._batch(list(islice(rows, len(step))))

    def _all_batches(self, produce: _Producer, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of all workers in turn, beginning with the worker whose turn is step `start`."""
        current = torch.full((max(1, self.workers),), -1)
        running: Any
        if self.workers:
            running = self._start_workers(produce, start, current.share_memory_())
        else:
            running = produce(0, current[0])
        skipped: dict[str, None] = {}  # errors in order, each image once
        try:
            while True:
                try:
                    found = next(running)
                except StopIteration:
                    return
                except Exception as error:  # a dead worker causes errors of many kinds
                    if self.workers and (death := self._worker_death(running._workers, current)):
                        raise death from error
                    raise
                if isinstance(found, PocketError):
                    raise found
                images, labels, bad = found
                skipped |= dict.fromkeys(bad)
                if len(labels):
                    yield images, labels
        finally:
            if self.workers:
                running._shutdown_workers()
            if skipped:
                _log.warning("%d images skipped in this pass; the first: %s", len(skipped), next(iter(skipped)))

    def _start_workers(self, produce: _Producer, start: int, current: Tensor) -> Iterator[Any]:
        """Starts the reading processes, and leaves the program's handler of their deaths in place."""
        loader = DataLoader(
            _Workers(produce, start, current),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_identity,
            generator=torch.Generator(),  # by default the loader draws from the global one, which dropout uses
        )
        before = {number: signal.getsignal(number) for number in _CHILD_ENDED}
        running = iter(loader)
        # If a worker dies, torch's signal handler raises RuntimeError wherever the program is. Without the handler the
        # error waits until a batch is asked for (5 seconds at most); there we can tell what the worker was reading.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
        return running

    def _worker_death(self, workers: list[Any], current: Tensor) -> WorkerDied | None:
        """The error that describes a dead worker, or None if none has died."""
        if not any(process.exitcode for process in workers):  # a batch can be missing just before its worker is dead
            wait([process.sentinel for process in workers if process.exitcode is None], timeout=1)
        number = next((number for number, process in enumerate(workers) if process.exitcode), None)
        if number is None:
            return None
        code, place = workers[number].exitcode, int(current[number])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = "before it read anything"
        if place >= 0:
            index, row = self._find(place)
            group = self.groups[index]
            first, last = group.row, group.row + group.rows - 1
            what = f"reading rows {first} to {last} of {group.file}, row {first + row} last; look at that file"
        return WorkerDied(
            f"worker {number} of {len(workers)} {how} {what}; if memory or /dev/shm ran out, use fewer workers, "
            "smaller batches or a machine with more"
        )


class _Workers(IterableDataset):
    """The loader's part that runs in the workers. It yields errors like batches, as torch rewords raised ones."""

    def __init__(self, produce: _Producer, start: int, current: Tensor) -> None:
        self.produce, self.start, self.current = produce, start, current

    def __iter__(self) -> Iterator[_ReadBatch | PocketError]:
        info: Any = get_worker_info()
        for number in STOP:  # sent to all processes, but the main one needs batches until it stops
            signal.signal(number, signal.SIG_IGN)
        torch.set_num_threads(1)  # torch's threads do not survive a fork, and waiting for them would never end
        try:
            yield from self.produce((self.start + info.id) % info.num_workers, self.current[info.id])
        except PocketError as error:
            yield error


def _identity(batch: Any) -> Any:
    return batch


def _evenly(length: int, count: int) -> np.ndarray:
    """Returns at most `count` different numbers, evenly spaced from 0 to `length - 1`."""
    return np.linspace(0, length - 1, min(length, count)).astype(np.int64)


def _check_part(batch_size: int, rank: int, world: int, start: int = 0, epoch: int = 0) -> None:
    """Checks the arguments of `batches` and `in_order`."""
    if batch_size < 1 or start < 0 or epoch < 0:
        raise ValueError(
            f"batch_size must be at least 1, start and epoch at least 0; got {batch_size}, {start}, {epoch}"
        )
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 to world - 1, got rank {rank} of world {world}")


def _read(group: RowGroup, column: str) -> Any:
    """Reads one column of a row group."""
    last = group.row + group.rows - 1
    with opened(group.file, f"rows {group.row} to {last}") as file:
        # Without arrow's threads, which do not survive a fork.
        return column_of(file.read_row_group(group.number, columns=[column], use_threads=False), column)
