"""Small trained nets in the package, each with a card that says how it was made and how accurate it is.

`create_model("resnet20", pretrained="cifar10")` loads one. The model files are in this folder, the cards in `index.json`. A
file is used only if its hash is the one on its card. `python -m pocketcnn.zoo` adds the net of a finished run.
"""

import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import Storage
from pocketcnn.errors import TamperedFile, UnknownPretrained
from pocketcnn.models import recipes
from pocketcnn.support.schema import read_shaped

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """A trained net in the package: its name, size, accuracy and origin.

    `file` is relative to the zoo's folder. `test_accuracy` was measured with the stored file, `trained_accuracy` with the
    float32 weights at the end of the run. `train` is the run's configuration, `commit` the version of pocketcnn that
    trained the net, `record` the folder under `results/` with the run's record.
    """

    name: str
    data: str
    file: str
    sha256: str
    size_bytes: int
    storage: Storage
    trainable_params: int
    test_accuracy: float
    trained_accuracy: float
    seed: int
    epochs: int
    train: dict[str, Any]
    commit: str
    record: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """Name of the net on the command line: `cifar10/resnet20`."""
        return f"{self.data}/{self.name}"


def cards(pattern: str = "*", data: str | None = None) -> tuple[Card, ...]:
    """Lists the trained nets in the package, sorted by data set and name.

    Args:
        pattern: a shell pattern of names (`"*ring*"`), or of data set and name (`"mnist/*"`).
        data: list only nets that were trained on this data set.
    """
    return tuple(
        card
        for card in read_cards(FOLDER)
        if data in (None, card.data) and any(fnmatch.fnmatchcase(n, pattern) for n in (card.name, card.title))
    )


def find(name: str, data: str) -> Card:
    """Finds the card of a net by its name and its data set.

    Raises:
        UnknownPretrained: no net of that name was trained on that data set; the message offers the nearest.
    """
    known = cards()
    if found := next((card for card in known if (card.name, card.data) == (name, data)), None):
        return found
    near = [card.title for card in known if card.data == data]
    elsewhere = [card.data for card in known if card.name == name]
    hint = f"Data sets: {', '.join(sorted({card.data for card in known})) or 'none'}."
    if near:
        hint = f"{name!r} was trained on: {', '.join(elsewhere)}." if elsewhere else ""
    raise UnknownPretrained(f"{data}/{name}", near or [card.title for card in known], hint)


def path_of(card: Card) -> Path:
    """Checks the hash of a net's file, and returns its path.

    Raises:
        TamperedFile: the file is missing, or is not the one that the card describes.
    """
    path = FOLDER / card.file
    found = sha256_of(path.read_bytes()) if path.is_file() else "nothing"
    if found != card.sha256:
        raise TamperedFile(
            f"{path}: found {found[:12]}, wanted {card.sha256[:12]} (sha256); install the package again: "
            "pip install --force-reinstall --no-deps pocketcnn"
        )
    return path


def create_model(name: str, *, pretrained: str | bool | None = None, **options: Any) -> nn.Module:
    """Makes a net by name: freshly initialised, or as it was trained on a data set.

    Args:
        name: a plain net (`"resnet20"`) or a recipe (`"resnet18_ring"`), which `list_models()` lists; with `pretrained` a
            trained net, which `zoo.cards()` lists.
        pretrained: the data set that the net was trained on, `"cifar10"` or `"mnist"`; True for the trained weights that timm
            or torchvision fetch.
        **options: for a fresh net the options of the plain net (`num_classes`, `in_channels`, `stem`, `width`), and for a
            recipe with one method also that method's options (`size=0.1`). A trained net is already built: it accepts only
            the `in_channels` and `num_classes` that it has.
    Returns:
        A net that `save` can write and `load` can rebuild. A fresh net is in training mode. A trained net is in evaluation
        mode, as `load` returns it: call `train()` before training it further.
    Raises:
        UnknownModel: no net has that name; the message offers the nearest.
        UnknownPretrained: no net of that name was trained on that data set.
        TamperedFile: the file in the package is not the one that its card describes.
        ValueError: an option is unknown, out of range, or differs from the trained net's.
    Example:
        >>> sum(p.numel() for p in create_model("resnet18", num_classes=10, stem="small").parameters())
        11173962
    """
    if pretrained is None or isinstance(pretrained, bool):
        return recipes.create_model(name, **options, **({} if pretrained is None else {"pretrained": pretrained}))
    card = find(name, pretrained)
    path = path_of(card)
    header = checkpoint.read_header(path)
    notes = ImageNotes.from_notes(header["notes"])
    num_classes = header["base"]["options"].get("num_classes", len(notes.classes))
    own = {"in_channels": notes.input_size[0], "num_classes": num_classes}
    for option, value in options.items():
        if option not in own or value != own[option]:
            has = f"its {option} is {own[option]}" if option in own else "it is already built"
            raise ValueError(
                f"{card.title}: a trained net cannot be made with {option}={value!r}, {has}; leave {option} out, and "
                "condense or train on what you get"
            )
    return checkpoint.load(path)


def read_cards(folder: Path) -> list[Card]:
    """Reads the cards in a zoo's folder, sorted; none if it has no index."""
    index = folder / "index.json"
    if not index.is_file():
        return []
    return sorted_cards(read_shaped(index, list[Card], remedy="install the package again"))


def sorted_cards(found: list[Card]) -> list[Card]:
    """Sorts cards by data set and name."""
    return sorted(found, key=lambda card: (card.data, card.name))


def sha256_of(content: bytes) -> str:
    """The SHA-256 hash of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
