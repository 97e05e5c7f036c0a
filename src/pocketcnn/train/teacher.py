"""The teacher: a trained net whose outputs another net learns."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.data import DataSet
from pocketcnn.errors import BadData
from pocketcnn.train.images import Normalize
from pocketcnn.train.outputs import check_input


class Teacher(nn.Module):
    """A trained net that normalises its images itself: it takes uint8, or floats from 0 to 255.

    `notes` say what it knows of its images; `digest` changes when its file does.
    """

    def __init__(self, net: nn.Module, notes: ImageNotes, digest: str) -> None:
        super().__init__()
        self.net, self.notes, self.digest = net.eval().requires_grad_(False), notes, digest
        self.normalize = Normalize(notes.mean, notes.std)

    def __deepcopy__(self, memo: Any) -> "Teacher":
        return self  # it never changes, so the averaged copies of a run share it

    @classmethod
    def read(cls, name: str) -> "Teacher":
        """Reads a teacher from a model file.

        Raises:
            BadData: the file does not say what the net was trained on.
            BrokenFile: or another error of `checkpoint.load`.
        """
        path = checkpoint.file_in(Path(name))
        notes = ImageNotes.read(path)
        if lacking := notes.lacks("classes", "input_size", "mean", "std"):
            raise BadData(
                f"teacher {name}: its file does not say what it was trained on (it lacks {', '.join(lacking)}); take the file "
                "that a training wrote"
            )
        return cls(checkpoint.load(path), notes, hashlib.sha256(path.read_bytes()).hexdigest()[:16])

    @classmethod
    def open(cls, name: str, data: DataSet) -> "Teacher":
        """Reads a teacher for a data set from a model file.

        Raises:
            BadData: the teacher has other classes or images than the data; or as in `read`.
        """
        teacher = cls.read(name)
        notes = teacher.notes
        if notes.classes != tuple(data.classes):
            raise BadData(f"teacher {name}: knows other classes than {data.name} has; take a net trained on these")
        if notes.input_size != tuple(data.input_size):
            raise BadData(
                f"teacher {name}: takes images of {list(notes.input_size)}, those of {data.name} are "
                f"{list(data.input_size)}"
            )
        check_input(teacher.net, data, who=f"teacher {name}")
        return teacher

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.normalize(images))
