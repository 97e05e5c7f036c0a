"""The command that puts the net of a finished run into the zoo: `python -m pocketcnn.zoo RUN --name resnet20 ...`"""

from pathlib import Path

import tyro

from pocketcnn.checkpoint.storage import Norms, Storage
from pocketcnn.data import load
from pocketcnn.zoo.add import add


def main(
    run: tyro.conf.Positional[Path],
    name: str,
    data_name: str,
    data: str,
    commit: str,
    storage: Storage = "float16",
    norms: Norms | None = None,
    record: str = "",
    note: str = "",
) -> None:
    """Put the net of a finished run into the zoo.

    Args:
        run: Folder of the run.
        name: Name of the net in the zoo.
        data_name: Name of its data set in the zoo.
        data: The data set itself, by name or folder; the stored file is measured on its test images.
        commit: Commit of pocketcnn that trained the net.
        storage: Type of the weights in the file.
        norms: Pack the file, with its norms so.
        record: Folder under results/ with the run's record.
        note: A remark for the card.
    """
    card = add(
        run, name=name, data=data_name, commit=commit, storage=storage, norms=norms, record=record, note=note,
        dataset=load(data),
    )  # fmt: skip
    print(f"{card.title}: {card.size_bytes:,} bytes, test accuracy {100 * card.test_accuracy:.2f} % as {storage}, "
          f"{100 * card.trained_accuracy:.2f} % as trained")  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main, prog="python -m pocketcnn.zoo")
