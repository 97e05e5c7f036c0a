"""The maintainer's part of the zoo: puts the net of a finished run into the package."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn import checkpoint, zoo
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import Norms, Storage
from pocketcnn.cost import count_params
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.runs import MODEL, read_result
from pocketcnn.zoo import Card, read_cards, sha256_of, sorted_cards

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.data import DataSet


LARGEST_FILE, LARGEST_ZOO = 2_000_000, 8_000_000  # bytes: everybody who installs the package downloads them all


def add(
    run: str | Path,
    *,
    name: str,
    data: str,
    commit: str,
    storage: Storage = "float16",
    norms: Norms | None = None,
    record: str = "",
    note: str = "",
    folder: str | Path | None = None,
    dataset: "DataSet | None" = None,
) -> Card:
    """Puts the net of a finished run into the zoo, and replaces a net that has its name and data set there.

    The stored file has the notes of the run's file, but names the data set as the card does, not by a folder of the machine.

    Args:
        run: folder of the run, with `model.safetensors` and `result.json`.
        name: name of the net in the zoo.
        data: name of its data set in the zoo.
        commit: commit of pocketcnn that trained the net.
        storage: type of the weights in the file, see `pocketcnn.checkpoint.storage`.
        norms: packs the file, with its norms so; None for an ordinary file.
        record: folder under `results/` with the run's record.
        note: a remark for the card.
        folder: folder of the zoo; by default the package's own.
        dataset: the data on whose test images the stored file is measured; by default those that `data` loads.
    Raises:
        ValueError: a name cannot be a file's, or the file or the zoo would be too large; nothing is changed.
        FileNotFoundError: the run is not finished.
    """
    run, folder = Path(run), zoo.FOLDER if folder is None else Path(folder)
    for word in (name, data):
        if not re.fullmatch(r"\w[\w.+=-]*", word):
            raise ValueError(f"{word!r} cannot be a file's name; use letters, digits and _ . + = -")
    result, source = read_result(run), run / MODEL
    if dataset is None:
        from pocketcnn.data import load

        dataset = load(data)
    others = [card for card in read_cards(folder) if (card.name, card.data) != (name, data)]
    room = LARGEST_ZOO - sum(card.size_bytes for card in others)
    net, notes = checkpoint.load(source), {**checkpoint.read_header(source)["notes"], "data": data}
    content, accuracy = _stored(net, notes, f"{data}/{name}", storage, norms, room, dataset)
    card = Card(
        name=name,
        data=data,
        file=f"{data}/{name}.safetensors",
        sha256=sha256_of(content),
        size_bytes=len(content),
        storage=storage,
        trainable_params=count_params(net)[0],
        test_accuracy=accuracy,
        trained_accuracy=result["test_accuracy"],
        seed=result["seed"],
        epochs=result["epochs"],
        train=result["train"],
        commit=commit,
        record=record,
        note=note,
    )
    make_folder(folder / data)
    write_atomically(folder / card.file, content)
    write_json(folder / "index.json", [dataclasses.asdict(card) for card in sorted_cards([*others, card])])
    return card


def _stored(
    net: "nn.Module",
    notes: dict[str, Any],
    title: str,
    storage: Storage,
    norms: Norms | None,
    room: int,
    dataset: "DataSet",
) -> tuple[bytes, float]:
    """Stores a net as the zoo does, and measures what was stored.

    Args:
        net: the trained net.
        notes: notes for its file.
        title: data set and name of the net in the zoo.
        storage: type of the weights.
        norms: as for `add`.
        room: bytes that the zoo has left for the file.
        dataset: the data on whose test images the net is measured, normalised as in its training.
    Returns:
        The content of the file, and the test accuracy of the net in it.
    Raises:
        ValueError: the file would be too large.
    """
    from pocketcnn.train import evaluate

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / MODEL
        how: dict[str, Any] = {} if norms is None else {"packed": True, "norms": norms}
        size = checkpoint.save(net, file, notes=notes, storage=storage, **how)
        if size > LARGEST_FILE:
            raise ValueError(f"{title}: {size:,} bytes as {storage}, a file may have {LARGEST_FILE:,}")
        if size > room:
            whole = size + LARGEST_ZOO - room
            raise ValueError(f"{title}: {whole:,} bytes with all others, the zoo may have {LARGEST_ZOO:,}")
        accuracy = evaluate(checkpoint.load(file), ImageNotes.read(file).applied_to(dataset))["test_accuracy"]
        return file.read_bytes(), accuracy
