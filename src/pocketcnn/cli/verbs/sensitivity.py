"""`pocketcnn sensitivity`: shows what it costs a trained net to condense each of its layers alone, and what it saves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import load_for
from pocketcnn.cli.nets import open_net
from pocketcnn.cli.parsing import method_help, parse
from pocketcnn.cli.printing import answer
from pocketcnn.support.ranges import Count


def sensitivity(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Sensitivity(AnswerOptions, ForeignArguments, TableOptions):
        model: Positional[str]
        """A trained net: a model file, the folder of a run, a trained net of the package (cifar10/resnet20), or a net by name
        (timm:resnet10t, nets/mine.py:build) with --weights."""
        method: str = "ring:size=0.25,scheme=windows"
        """Method that condenses each layer, with its options."""
        data: str | None = None
        """Data set whose training images the net is shown; by default that of the net's training."""
        images: Count = 512
        """Number of images, 2 or more."""
        output: Path | None = None
        """SVG file for a figure."""

    given = parse(Sensitivity, words, "sensitivity", method_help)
    import torch

    from pocketcnn.experiments.sensitivity import sensitivity as run
    from pocketcnn.models.spec import parse_method
    from pocketcnn.support.files import write_atomically
    from pocketcnn.train.images import normalized

    opened = open_net(given.model, given).needs()
    data = load_for(opened.notes, given.data, given.model, tables=given)
    method, options = parse_method(given.method)
    images = torch.cat(list(normalized(data.train.sample(given.images).in_order(500), data)))[: given.images]
    found = run(opened.net, method, images, **options)
    answer(str(found), found.worst_first(), method=found.method, examples=found.examples, figure=given.output)
    if given.output is not None:
        write_atomically(given.output, found.figure())
        print(given.output)
