"""`pocketcnn pack`: rewrites a model file to be smaller, or locks it, and shows what that costs in accuracy."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.nets import load_net, model_files, new_passphrase, passphrase_of
from pocketcnn.cli.parsing import parse


def pack(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass
    class Pack:
        model: Positional[Path]
        """A model file, or the folder of a run."""
        output: Path = Path("packed.safetensors")
        """The model file to write."""
        storage: Literal["float32", "float16", "int8"] = "float32"
        """Type of the weights in the file; they are rounded to it."""
        prune: float = 0.0
        """Share of each weight tensor that is set to zero, smallest weights first."""
        lock: Literal["keep", "new", "none"] = "keep"
        """Passphrase that hides the seeds of rings and puppets: the file's own, if any (keep); a new one, read from
        POCKETCNN_NEW_PASSPHRASE or asked for (new); or none."""
        data: str | None = None
        """Data set on whose test images the accuracy before and after is measured."""

    given = parse(Pack, words, "pack")
    from pocketcnn import checkpoint
    from pocketcnn.checkpoint.storage import prune_

    (path,) = model_files((given.model,), ("net",)).values()
    net, notes = load_net(path), checkpoint.read_header(path)["notes"]
    nets = [("before", path.stat().st_size, net)]
    packed = copy.deepcopy(net)
    if given.prune:
        prune_(packed, given.prune)
    passphrase = None
    if given.lock != "none":
        passphrase = passphrase_of(path) if given.lock == "keep" else new_passphrase(given.output)
    size = checkpoint.save(packed, given.output, notes=notes, storage=given.storage, passphrase=passphrase)
    nets.append(("after", size, checkpoint.load(given.output, passphrase=passphrase)))
    data = None
    if given.data is not None:
        from pocketcnn.data import load

        data = load(given.data)
    for title, length, net in nets:
        accuracy = ""
        if data is not None:
            from pocketcnn.train import evaluate

            accuracy = f"  test accuracy {100 * evaluate(net, data)['test_accuracy']:.2f} %"
        print(f"{title:<6} {length:>14,} bytes  ({length / nets[0][1]:.3f}x){accuracy}")
    print(f"{given.output}: {size:,} bytes")
