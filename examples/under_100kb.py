"""Packs a trained resnet20 into a file of at most 100,000 bytes: fits a short ring to it, distils, stores as int8.

    python examples/under_100kb.py --data cifar10 --epochs 5 --output runs/under100

Two bytes replace every nine weights of a kernel: their place on the ring, and a sign. The ring, one byte a parameter, gets the
rest of the budget. This takes an hour on one core. The printed accuracies are of the files, on test images.
"""

import argparse
import dataclasses
import logging
from pathlib import Path

import pocketcnn as pc
from pocketcnn.data import DataSet, load
from pocketcnn.train import PRESETS, TrainConfig, evaluate
from pocketcnn.zoo import find, path_of

SCHEME = {"scheme": "windows", "gain": True}


def ring_for(net, notes: dict, max_bytes: int, folder: Path) -> int:
    """Length of the longest ring, a multiple of 50, with which the net's int8 file keeps to the budget."""

    def file_bytes(size: int) -> int:
        small = pc.condense(net, "ring", size=size, **SCHEME)
        return pc.save(small, folder / "trial.safetensors", notes=notes, storage="int8")

    least = file_bytes(50)
    size = 50 + 50 * ((max_bytes - least) // 50)  # a byte a parameter, apart from the header
    while size > 50 and file_bytes(size) > max_bytes:
        size -= 50
    if size < 50:
        raise ValueError(f"{max_bytes:,} bytes are too few: with a ring of 50 parameters the file takes {least:,}")
    return size


def run(
    teacher: Path, data: DataSet, output: Path, config: TrainConfig, *, max_bytes: int = 100_000, images: int = 2000
) -> dict[str, float]:
    """Makes the small file; returns bytes and test accuracy of it, of the trained net, and of the trained net in int8."""
    output.mkdir(parents=True, exist_ok=True)
    net, notes = pc.load(teacher), pc.checkpoint.read_header(teacher)["notes"]
    size = ring_for(net, notes, max_bytes, output)
    pc.distil.distil(teacher, f"ring:size={size},scheme=windows", data, config, output / "run", images=images)
    trained = pc.load(output / "run" / "model.safetensors")
    files = {"plain": (net, None), "plain int8": (net, "int8"), f"ring of {size}, int8": (trained, "int8")}
    found = {}
    for title, (made, storage) in files.items():
        path = output / f"{title.replace(' ', '_').replace(',', '')}.safetensors"
        length = pc.save(made, path, notes=notes, storage=storage)
        accuracy = evaluate(pc.load(path), data)["test_accuracy"]
        print(f"{title:<24} {length:>10,} bytes  {100 * accuracy:.2f} %")
        found |= {f"{title} bytes": length, f"{title} accuracy": accuracy}
    (output / "trial.safetensors").unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="a trained net's file; the packaged resnet20 by default")
    parser.add_argument("--data", default="cifar10", help="data set, as for pocketcnn train")
    parser.add_argument("--epochs", type=int, default=5, help="number of epochs")
    parser.add_argument("--max-bytes", type=int, default=100_000, help="largest size of the file")
    parser.add_argument("--output", type=Path, default=Path("runs/under100"), help="folder for the run and the files")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pocketcnn").setLevel(logging.INFO)
    teacher = given.teacher or path_of(find("resnet20", "cifar10"))
    config = dataclasses.replace(PRESETS["distil"], epochs=given.epochs)
    run(teacher, load(given.data), given.output, config, max_bytes=given.max_bytes)


if __name__ == "__main__":
    main()
