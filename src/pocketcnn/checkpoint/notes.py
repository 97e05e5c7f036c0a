"""Knowledge of a net about its images: `ImageNotes`, read from a data set or a model file, and applied to images."""

import dataclasses
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from pocketcnn.checkpoint.header import read_header
from pocketcnn.data import DataSet, Images
from pocketcnn.errors import BrokenFile
from pocketcnn.support.schema import shaped

_Size = Annotated[int, Meta(ge=1, le=1 << 16)]
_Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
_KINDS: dict[str, Any] = {
    "data": str,
    "classes": tuple[str, ...],
    "input_size": tuple[_Size, _Size, _Size],
    "mean": tuple[_Finite, ...],
    "std": tuple[Annotated[float, Meta(gt=0, le=1e30)], ...],
}


class _Reading(TypedDict, total=False):
    image_column: str
    label_column: str
    bits: Literal[8, 10, 12, 14, 16]


_KINDS["reading"] = _Reading
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageNotes:
    """The facts in a model file about the images that its net was trained on. An entry that the file lacks is empty.

    `data` is the name of the data set, `classes` holds its classes in the order of the net's outputs. `input_size` is
    (channels, height, width); `mean` and `std` are per channel, of images scaled to [0, 1]. `reading` is that of the
    `DataSet`; most data sets need none, so it counts as no entry where it is empty.
    """

    data: str = ""
    classes: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataSet) -> "ImageNotes":
        """The notes that a net trained on a data set has."""
        return cls(
            data.name,
            tuple(data.classes),
            tuple(data.input_size),
            tuple(data.mean),
            tuple(data.std),
            dict(data.reading),
        )

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "ImageNotes":
        """The notes in the header of a model file; an entry of another form than ours is logged, and counts as lacking.

        `input_size` is three whole numbers from 1 to 65,536; `mean` and `std` are finite, one for each channel, and a
        deviation is positive.
        """
        known: dict[str, Any] = {}
        for name, kind in _KINDS.items():
            if not notes.get(name):
                continue
            try:
                known[name] = shaped(notes[name], kind, name, remedy="it is left out")
            except BrokenFile as error:
                _log.warning("the notes of a model file are damaged: %s", error)
        channels = known["input_size"][0] if known.get("input_size") else None
        for name in ("mean", "std"):
            if channels is not None and len(known.get(name) or (0,) * channels) != channels:
                count = len(known.pop(name))
                _log.warning(
                    "the notes of a model file are damaged: %d values of %s for %d channels", count, name, channels
                )
        return cls(**known)

    @classmethod
    def read(cls, path: str | Path) -> "ImageNotes":
        """The notes in a model file, or in the one of a folder; the errors are those of `read_header`."""
        return cls.from_notes(read_header(path)["notes"])

    def lacks(self, *names: str) -> list[str]:
        """Names of the empty entries, among those given or among all."""
        return [name for name in names or self.as_dict() if not getattr(self, name)]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalises images as in the net's training; without mean and deviation they are only scaled to [0, 1].

        Args:
            pixels: [..., channels, height, width], values from 0 to 255.
        Returns:
            float32 images of the same shape.
        """
        mean, std = (torch.tensor(given)[:, None, None] for given in (self.mean or (0.0,), self.std or (1.0,)))
        return (pixels.float() / 255 - mean) / std

    def applied_to(self, data: DataSet) -> DataSet:
        """Gives a data set the mean and deviation of the net's training; without both it stays as it is.

        A net must see images normalised as in its training, even if they have another mean and deviation.
        """
        return data if self.lacks("mean", "std") else dataclasses.replace(data, mean=self.mean, std=self.std)

    def knows(self, classes: Sequence[str]) -> tuple[list[str], list[str]]:
        """Divides the names of classes into those that the net has and the others; letters in any Unicode form are alike."""
        own = {_one_form(name) for name in self.classes}
        known = [name for name in classes if _one_form(name) in own]
        return known, [name for name in classes if _one_form(name) not in own]

    def numbered(self, data: DataSet) -> DataSet:
        """Gives the labels of a data set the numbers that the net's outputs have, by the names of the classes.

        Raises:
            ValueError: the net does not know a class.
        """
        places = {_one_form(name): number for number, name in enumerate(self.classes)}
        if unknown := self.knows(data.classes)[1]:
            raise ValueError(f"{data.name}: the net does not know its class {unknown[0]!r}")
        numbers = torch.tensor([places[_one_form(name)] for name in data.classes])
        train, validation, test = (
            Images(split.images, numbers[split.labels]) for split in (data.train, data.validation, data.test)
        )
        return dataclasses.replace(data, classes=self.classes, train=train, validation=validation, test=test)

    def as_dict(self) -> dict[str, Any]:
        """The notes as a model file holds them."""
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return found if self.reading else {name: value for name, value in found.items() if name != "reading"}


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)
