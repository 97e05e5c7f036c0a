"""`pocketcnn condense`: replaces layers of a net by condensed ones, and shows what the small net saves."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketcnn.cli.arguments import AnswerOptions, SurgeryArguments, TableOptions
from pocketcnn.cli.images import completed, load_for
from pocketcnn.cli.nets import input_size_of, open_net, passphrase_of
from pocketcnn.cli.parsing import parse_surgery
from pocketcnn.cli.printing import answer
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Count

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.data import DataSet


def condense(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class Condense(AnswerOptions, SurgeryArguments, TableOptions):
        output: Path = Path("small.safetensors")
        """The model file to write."""
        initialize: Literal["fresh", "fit"] = "fresh"
        """Draw the weights of the new layers at random (fresh), or fit them to the trained weights that they replace (fit)."""
        data: str | None = None
        """Data set whose training images the fit uses; accuracy on its validation images is shown."""
        images: Count = 2000
        """Number of training images that the fit uses, 1 or more."""

    given, options = parse_surgery(Condense, words, "condense")
    import pocketcnn as pc

    opened = open_net(given.model, given)
    data = None
    if given.data is not None:
        data = load_for(opened.notes, given.data, given.model, tables=given)
        opened = completed(opened, data)
    net, input_size = opened.net, input_size_of(given, opened)
    small, accuracies = _condensed(net, data, given, options)
    before, after = pc.measure(net, input_size), pc.measure(small, input_size)
    passphrase = passphrase_of(opened.path) if opened.path is not None else None
    size = pc.save(small, given.output, notes=opened.header, passphrase=passphrase)
    lines = []
    for key in ("trainable_params", "macs", "depth", "size_bytes"):
        old, new = getattr(before, key), getattr(after, key)
        lines.append(f"{key:<16} {old:>14,} -> {new:>14,}  ({new / old:.3g}x)")
    rows = [{"net": title, **dataclasses.asdict(cost)} for title, cost in (("before", before), ("after", after))]
    answer("\n".join(lines), rows, validation_accuracy=accuracies, file=given.output, file_bytes=size)
    print(f"{given.output}: {size:,} bytes")


def _condensed(
    net: "nn.Module", data: "DataSet | None", given: Any, options: dict[str, Any]
) -> tuple["nn.Module", dict[str, float]]:
    """Condenses a net. With data it prints the accuracy before, after a fresh start, and after a fit if one is asked for.

    Returns:
        The small net, and these accuracies on the validation images.
    Raises:
        BadUsage: the method is fitted to outputs for images, and no data were given.
    """
    import pocketcnn as pc

    if data is None:
        if given.initialize == "fit" and pc.METHODS[given.method].match is None:
            raise BadUsage(
                f"{given.method} is fitted to what the trained layers give for images; name some with --data"
            )
        if given.initialize == "fit":
            print("without --data, batch norms keep the statistics of the net before")
        return pc.condense(net, given.method, initialize=given.initialize, **options), {}
    from pocketcnn.train import evaluate
    from pocketcnn.train.distil import condensed

    nets = {"before": net}
    for initialize in dict.fromkeys(("fresh", given.initialize)):
        nets[initialize] = condensed(net, given.method, data, initialize=initialize, images=given.images, **options)
    accuracies = {}
    for title, made in nets.items():
        accuracies[title] = evaluate(made, data, split="validation")["validation_accuracy"]
        print(f"{title:<7} {100 * accuracies[title]:6.2f} % of the validation images of {data.name}")
    return nets[given.initialize], accuracies
