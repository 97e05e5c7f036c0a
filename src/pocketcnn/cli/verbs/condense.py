"""`pocketcnn condense`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketcnn.cli.arguments import SurgeryArguments, input_size_of
from pocketcnn.cli.nets import named_or_file, passphrase_of
from pocketcnn.cli.parsing import parse_surgery
from pocketcnn.errors import BadUsage

if TYPE_CHECKING:
    from torch import nn


def condense(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class Condense(SurgeryArguments):
        output: Path = Path("small.safetensors")
        """The model file to write."""
        initialize: Literal["fresh", "fit"] = "fresh"
        """Draw the new layers' numbers anew, or bring them near to the trained weights that they replace."""
        data: str | None = None
        """Data set whose training images a fit looks at; accuracy on its validation images is shown."""
        images: int = 2000
        """How many training images a fit looks at."""

    import pocketcnn as pc

    given, options = parse_surgery(Condense, words, "condense")
    net, notes = named_or_file(given.model, given)
    small = _condensed(net, notes, given, {"include": given.include, "exclude": given.exclude, **options})
    before, after = pc.measure(net, input_size_of(given, notes)), pc.measure(small, input_size_of(given, notes))
    passphrase = passphrase_of(Path(given.model)) if Path(given.model).is_file() else None
    size = pc.save(small, given.output, notes=notes, passphrase=passphrase)
    for key in ("trainable_params", "macs", "depth", "size_bytes"):
        old, new = getattr(before, key), getattr(after, key)
        print(f"{key:<16} {old:>14,} -> {new:>14,}  ({new / old:.3g}x)")
    print(f"{given.output}: {size:,} bytes")


def _condensed(net: "nn.Module", notes: dict[str, Any], given: Any, options: dict[str, Any]) -> "nn.Module":
    """The condensed net; with data, it is shown how accurate it is before any training, and from a fresh start."""
    import pocketcnn as pc

    if given.data is None:
        if given.initialize == "fit" and pc.METHODS[given.method].match is None:
            raise BadUsage(
                f"{given.method} is fitted to what the trained layers give for images: name some with --data"
            )
        if given.initialize == "fit":
            print("without --data batch norms keep the statistics of the weights before")
        return pc.condense(net, given.method, initialize=given.initialize, **options)
    from pocketcnn.data import load
    from pocketcnn.train import evaluate
    from pocketcnn.train.distil import condensed

    data = load(given.data)
    if {"mean", "std"} <= notes.keys():
        data = dataclasses.replace(data, mean=tuple(notes["mean"]), std=tuple(notes["std"]))
    nets = {"before": net}
    for initialize in dict.fromkeys(("fresh", given.initialize)):
        nets[initialize] = condensed(net, given.method, data, initialize=initialize, images=given.images, **options)
    for title, made in nets.items():
        found = evaluate(made, data, split="validation")
        print(f"{title:<7} {100 * found['validation_accuracy']:6.2f} % of the validation images of {data.name}")
    return nets[given.initialize]
