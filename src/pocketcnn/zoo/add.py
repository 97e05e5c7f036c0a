"""Putting the net of a finished run into the package; the maintainer's part."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pocketcnn import checkpoint, zoo
from pocketcnn.checkpoint.storage import Storage
from pocketcnn.cost import count_params
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.runs import MODEL, read_result
from pocketcnn.zoo import Card, read_cards, sha256_of, sorted_cards

if TYPE_CHECKING:
    from pocketcnn.data import DataSet


LARGEST_FILE, LARGEST_ZOO = 2_000_000, 8_000_000  # bytes: everybody who installs the package downloads them all


def add(
    run: str | Path,
    *,
    name: str,
    data: str,
    commit: str,
    storage: Storage = "float16",
    record: str = "",
    note: str = "",
    folder: str | Path | None = None,
    dataset: "DataSet | None" = None,
) -> Card:
    """Puts the net of a finished run into the zoo, in place of the one that has this name there.

    The file says what the run's says, but names the data set as the card does, not by a folder of the machine.

    Args:
        run: its folder, with `model.safetensors` and `result.json`.
        name: what the net will be called.
        data: what its data set is called.
        commit: of pocketcnn, when the net was trained.
        storage: type of the weights in the file, see `pocketcnn.storage`.
        record: folder under `results/` with the run's record.
        note: anything else that should be known.
        folder: of the zoo; the package's own by default.
        dataset: whose test images the stored file is measured with; loaded by the name `data` by default.
    Raises:
        ValueError: a name that is no file name, or a file or a zoo that would be too large; nothing is changed.
        FileNotFoundError: the run is not finished.
    """
    from pocketcnn.train import evaluate

    run, folder = Path(run), zoo.FOLDER if folder is None else Path(folder)
    for word in (name, data):
        if not re.fullmatch(r"\w[\w.+=-]*", word):
            raise ValueError(f"{word!r} cannot be a file's name; letters, digits and _ . + = - are taken")
    result = read_result(run)
    source = run / MODEL
    notes = {**checkpoint.read_header(source)["notes"], "data": data}
    net = checkpoint.load(source)
    if dataset is None:
        from pocketcnn.data import load

        dataset = load(data)
    others = [card for card in read_cards(folder) if (card.name, card.data) != (name, data)]
    with tempfile.TemporaryDirectory() as place:
        stored = Path(place) / MODEL
        size = checkpoint.save(net, stored, notes=notes, storage=storage)
        if size > LARGEST_FILE:
            raise ValueError(f"{data}/{name}: {size:,} bytes as {storage}, a file may have {LARGEST_FILE:,}")
        if (whole := size + sum(card.size_bytes for card in others)) > LARGEST_ZOO:
            raise ValueError(f"{data}/{name}: {whole:,} bytes with all others, the zoo may have {LARGEST_ZOO:,}")
        seen = dataclasses.replace(dataset, mean=tuple(notes["mean"]), std=tuple(notes["std"]))  # as it was trained
        accuracy = evaluate(checkpoint.load(stored), seen)["test_accuracy"]
        content = stored.read_bytes()
    card = Card(
        name=name,
        data=data,
        file=f"{data}/{name}.safetensors",
        sha256=sha256_of(content),
        size_bytes=size,
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
