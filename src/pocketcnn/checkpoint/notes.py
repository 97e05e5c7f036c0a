"""What a net knows of the images that it was trained on: read from data or from a model file, and applied to images."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketcnn.checkpoint.header import read_header
from pocketcnn.data import DataSet


@dataclass(frozen=True)
class ImageNotes:
    """What a model file says of the images that its net was trained on. An entry that the file lacks is empty.

    `data` is the name of the data set, `classes` are their names in the order of the net's outputs. `input_size` is
    (channels, height, width); `mean` and `std` are per channel, of images scaled to [0, 1].
    """

    data: str = ""
    classes: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, data: DataSet) -> "ImageNotes":
        """The notes that a net trained on a data set has."""
        return cls(data.name, tuple(data.classes), tuple(data.input_size), tuple(data.mean), tuple(data.std))

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "ImageNotes":
        """The notes in the header of a model file; an entry of another type than ours counts as lacking."""
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = notes.get(field.name)
            if isinstance(value, str if field.name == "data" else list | tuple):
                known[field.name] = value if field.name == "data" else tuple(value)
        return cls(**known)

    @classmethod
    def read(cls, path: str | Path) -> "ImageNotes":
        """The notes in a model file, or in the one of a folder; the errors are those of `read_header`."""
        return cls.from_notes(read_header(path)["notes"])

    def lacks(self, *names: str) -> list[str]:
        """Names of the entries that are empty, of those given or of all."""
        return [name for name in names or self.as_dict() if not getattr(self, name)]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images as the net saw them in training; only scaled to [0, 1] where mean and deviation are lacking.

        Args:
            pixels: [..., channels, height, width], values from 0 to 255.
        Returns:
            float32 images of the same shape.
        """
        mean, std = (torch.tensor(given)[:, None, None] for given in (self.mean or (0.0,), self.std or (1.0,)))
        return (pixels.float() / 255 - mean) / std

    def applied_to(self, data: DataSet) -> DataSet:
        """A data set whose images are normalised as in the net's training, whatever their own mean and deviation are.

        Where mean or deviation is lacking, the data set is left as it is.
        """
        return data if self.lacks("mean", "std") else dataclasses.replace(data, mean=self.mean, std=self.std)

    def as_dict(self) -> dict[str, Any]:
        """The notes as a model file holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def image_notes(data: DataSet) -> dict[str, Any]:
    """The notes that the file of a net trained on a data set holds."""
    return ImageNotes.of(data).as_dict()
