"""`pocketcnn pack`: rewrites a model file to be smaller, or locks it, and shows what that costs in accuracy."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import completed, load_for
from pocketcnn.cli.nets import new_passphrase, open_net, passphrase_of, size_of
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer
from pocketcnn.support.ranges import Fraction


def pack(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Pack(AnswerOptions, ForeignArguments, TableOptions):
        model: Positional[str]
        """A model file, the folder of a run, a trained net of the package (cifar10/resnet20), or a net by name."""
        output: Path = Path("packed.safetensors")
        """The model file to write."""
        storage: Literal["float32", "float16", "int8"] = "float32"
        """Type of the weights in the file; they are rounded to it."""
        prune: Fraction = 0.0
        """Share of each weight tensor that is set to zero, in [0, 1), smallest weights first."""
        packed: bool = False
        """Code all of the file in as few bytes as is known here; the net that loads is the same, bit for bit."""
        norms: Literal["exact", "float16", "folded"] = "exact"
        """Round norms and biases to float16's digits, which makes a packed file smaller; or also leave of each batch norm a factor
        and a summand (folded), which is enough to serve."""
        lock: Literal["keep", "new", "none"] = "keep"
        """Passphrase that hides the seeds of rings and puppets: the file's own, if any (keep); a new one, read from
        POCKETCNN_NEW_PASSPHRASE or asked for (new); or none."""
        data: str | None = None
        """Data set on whose test images the accuracy before and after is measured, normalised as in the net's training."""

    given = parse(Pack, words, "pack")
    from pocketcnn import checkpoint
    from pocketcnn.checkpoint.storage import prune_

    opened = open_net(given.model, given)
    path = opened.path
    data = None
    if given.data is not None:
        data = load_for(opened.notes, given.data, given.model, tables=given)
        opened = completed(opened, data)
    nets = [("before", size_of(opened), opened.net)]
    packed = copy.deepcopy(opened.net)
    if given.prune:
        prune_(packed, given.prune)
    passphrase = None
    if given.lock != "none":
        kept = passphrase_of(path) if path is not None else None
        passphrase = kept if given.lock == "keep" else new_passphrase(given.output)
    size = checkpoint.save(
        packed, given.output, notes=opened.header, storage=given.storage, passphrase=passphrase, packed=given.packed,
        norms=given.norms,
    )  # fmt: skip
    nets.append(("after", size, checkpoint.load(given.output, base=given.base, passphrase=passphrase)))
    lines, rows = [], []
    for title, length, net in nets:
        words, accuracy = "", None
        if data is not None:
            from pocketcnn.train import evaluate

            accuracy = evaluate(net, data)["test_accuracy"]
            words = f"  test accuracy {100 * accuracy:.2f} %"
        ratio = length / nets[0][1]
        lines.append(f"{title:<6} {length:>14,} bytes  ({ratio:.3f}x){words}")
        rows.append({"net": title, "file_bytes": length, "ratio": ratio, "test_accuracy": accuracy})
    answer("\n".join(lines), rows, file=given.output)
    print(f"{given.output}: {size:,} bytes")
