"""`pocketcnn condense`: replaces layers of a net by condensed ones, and shows what the small net saves."""

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

    from pocketcnn.checkpoint.notes import ImageNotes


def condense(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class Condense(SurgeryArguments):
        output: Path = Path("small.safetensors")
        """The model file to write."""
        initialize: Literal["fresh", "fit"] = "fresh"
        """Draw the weights of the new layers at random (fresh), or fit them to the trained weights that they replace (fit)."""
        data: str | None = None
        """Data set whose training images the fit uses; accuracy on its validation images is shown."""
        images: int = 2000
        """Number of training images that the fit uses."""

    import pocketcnn as pc
    from pocketcnn.checkpoint.notes import ImageNotes

    given, options = parse_surgery(Condense, words, "condense")
    net, notes = named_or_file(given.model, given)
    known = ImageNotes.from_notes(notes)
    small = _condensed(net, known, given, {"include": given.include, "exclude": given.exclude, **options})
    input_size = input_size_of(given, known)
    before, after = pc.measure(net, input_size), pc.measure(small, input_size)
    passphrase = passphrase_of(Path(given.model)) if Path(given.model).is_file() else None
    size = pc.save(small, given.output, notes=notes, passphrase=passphrase)
    for key in ("trainable_params", "macs", "depth", "size_bytes"):
        old, new = getattr(before, key), getattr(after, key)
        print(f"{key:<16} {old:>14,} -> {new:>14,}  ({new / old:.3g}x)")
    print(f"{given.output}: {size:,} bytes")


def _condensed(net: "nn.Module", notes: "ImageNotes", given: Any, options: dict[str, Any]) -> "nn.Module":
    """Condenses a net. With data it prints the accuracy before, after a fresh start, and after a fit if one is asked for.

    Raises:
        BadUsage: the method is fitted to outputs for images, and no data were given.
    """
    import pocketcnn as pc

    if given.data is None:
        if given.initialize == "fit" and pc.METHODS[given.method].match is None:
            raise BadUsage(
                f"{given.method} is fitted to what the trained layers give for images; name some with --data"
            )
        if given.initialize == "fit":
            print("without --data, batch norms keep the statistics of the net before")
        return pc.condense(net, given.method, initialize=given.initialize, **options)
    from pocketcnn.data import load
    from pocketcnn.train import evaluate
    from pocketcnn.train.distil import condensed

    data = notes.applied_to(load(given.data))
    nets = {"before": net}
    for initialize in dict.fromkeys(("fresh", given.initialize)):
        nets[initialize] = condensed(net, given.method, data, initialize=initialize, images=given.images, **options)
    for title, made in nets.items():
        found = evaluate(made, data, split="validation")
        print(f"{title:<7} {100 * found['validation_accuracy']:6.2f} % of the validation images of {data.name}")
    return nets[given.initialize]
