"""The teacher: a trained net whose outputs another net learns."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.data import DataSet
from pocketcnn.errors import BadData
from pocketcnn.support.copying import copied
from pocketcnn.train.images import Normalize
from pocketcnn.train.outputs import check_input
from pocketcnn.train.scores import USUAL, Scores


class Teacher(nn.Module):
    """A trained net that normalises its images itself: it takes uint8, or floats from 0 to 255.

    `notes` say what it knows of its images; `digest` changes when its file does. `name` is for messages.
    """

    def __init__(self, net: nn.Module, notes: ImageNotes, digest: str, name: str = "") -> None:
        super().__init__()
        self.name = f"teacher {name}".strip()
        self.net, self.notes, self.digest = net.eval().requires_grad_(False), notes, digest
        self.normalize = Normalize(notes.mean, notes.std)

    def __deepcopy__(self, memo: Any) -> "Teacher":
        return self  # it never changes, so the averaged copies of a run share it

    @classmethod
    def read(cls, name: str | Path, base: str | nn.Module | None = None) -> "Teacher":
        """Reads a teacher from a model file; `base` is as in `checkpoint.load`.

        Raises:
            BadData: the file does not say what the net was trained on.
            BrokenFile: or another error of `checkpoint.load`.
        """
        path = checkpoint.file_in(Path(name))
        notes = ImageNotes.read(path)
        if lacking := notes.lacks("classes", "input_size", "mean", "std"):
            raise BadData(
                f"teacher {name}: its file does not say what it was trained on (it lacks {', '.join(lacking)}); take the file "
                "that a training wrote, or load the net and give a Teacher with its notes"
            )
        return cls(checkpoint.load(path, base=base), notes, digest_of_file(path), str(name))

    @classmethod
    def of(cls, given: "str | Path | nn.Module") -> "Teacher":
        """A teacher as it is, from a file, or of a net whose images are normalised as those of the student's data."""
        if isinstance(given, Teacher):
            return given
        if isinstance(given, nn.Module):
            return cls(copied(given), ImageNotes(), digest_of(given))
        return cls.read(given)

    def fitting(self, data: DataSet, scores: Scores = USUAL) -> "Teacher":
        """The teacher for a data set; what it does not say of its images is as in the data. `scores` are those of `fit`.

        Raises:
            BadData: the teacher has other classes or images than the data.
        """
        known, own = self.notes, ImageNotes.of(data)
        notes = dataclasses.replace(known, **{name: getattr(own, name) for name in known.lacks()})
        if notes.classes != own.classes:
            raise BadData(f"{self.name}: knows other classes than {data.name} has; take a net trained on these")
        if notes.input_size != own.input_size:
            raise BadData(
                f"{self.name}: takes images of {list(notes.input_size)}, those of {data.name} are {list(own.input_size)}"
            )
        check_input(self.net, data, who=self.name, scores=scores)
        return Teacher(self.net, notes, self.digest, self.name.removeprefix("teacher").strip())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.normalize(images))


def digest_of_file(path: Path) -> str:
    """A hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def digest_of(net: nn.Module) -> str:
    """A hash of all tensors of a net."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
