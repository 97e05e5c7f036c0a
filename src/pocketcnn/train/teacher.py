"""A trained net whose outputs another one learns."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.data import DataSet
from pocketcnn.errors import BadData
from pocketcnn.train.images import Normalize


class Teacher(nn.Module):
    """A trained net that takes images as a run on its data set gives them: uint8, or floats from 0 to 255."""

    def __init__(self, net: nn.Module, notes: Mapping[str, Any], digest: str) -> None:
        super().__init__()
        self.net, self.digest = net.eval().requires_grad_(False), digest
        self.normalize = Normalize(notes["mean"], notes["std"])

    def __deepcopy__(self, memo: Any) -> "Teacher":
        return self  # it does not change, and averaged copies of a run need none of their own

    @classmethod
    def read(cls, name: str) -> "tuple[Teacher, dict[str, Any]]":
        """A teacher from a model file, and what the file says of its images.

        Raises:
            BadData: it was not trained.
            BrokenFile: or another error of `checkpoint.load`.
        """
        path = checkpoint.file_in(Path(name))
        notes = checkpoint.read_header(path)["notes"]
        if not {"classes", "input_size", "mean", "std"} <= notes.keys():
            raise BadData(f"teacher {name}: does not say what it was trained on; take the file that a training left")
        return cls(checkpoint.load(path), notes, hashlib.sha256(path.read_bytes()).hexdigest()[:16]), notes

    @classmethod
    def open(cls, name: str, data: DataSet) -> "Teacher":
        """A teacher for some data, from a model file.

        Raises:
            BadData: it has other classes or images than the data; or as in `read`.
        """
        teacher, notes = cls.read(name)
        if notes["classes"] != list(data.classes):
            raise BadData(f"teacher {name}: knows other classes than {data.name} has; take one trained on these")
        if notes["input_size"] != list(data.input_size):
            raise BadData(
                f"teacher {name}: takes images of {notes['input_size']}, those of {data.name} are {list(data.input_size)}"
            )
        return teacher

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.normalize(images))
