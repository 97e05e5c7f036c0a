"""Pictures of what trained nets make of images, and of the layers that generate or share their kernels."""

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import ForeignArguments, TableOptions
from pocketcnn.cli.images import common_notes, images_for, some_test_images
from pocketcnn.cli.nets import open_nets
from pocketcnn.cli.parsing import parse
from pocketcnn.support.ranges import Number
from pocketcnn.support.wings import part_of

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.pictures import Images


def picture(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Picture(ForeignArguments, TableOptions):
        models: Positional[tuple[str, ...]]
        """Model files, folders of runs, trained nets of the package, or a net by name with --weights."""
        data: str | None = None
        """Data set whose test images are shown; by default that of the first net's training."""
        images: tuple[Number, ...] = (0, 1, 2)
        """Numbers of the test images that are shown; fields and the kernels of pixels are drawn for the first."""
        image_file: Path | None = None
        """An image file to show instead of test images."""
        layer: str | None = None
        """Dotted name of the module whose map is shown; by default all maps of one net, the last map of several nets."""
        channel: Number | None = None
        """Channel that is shown; by default the mean over channels, and for fields the channel that changes most."""
        titles: tuple[str, ...] = ()
        """Names of the nets in the pictures; by default the parts of their paths that tell them apart."""
        output: Path = Path("runs/pictures")
        """Folder for the PNG and SVG files."""

    given = parse(Picture, words, "picture")
    from pocketcnn.pictures import Images, draw_maps, write_figure

    opened = open_nets(given.models, given.titles, given)
    nets = {title: one.net for title, one in opened.items()}
    notes = common_notes(opened, given.data)
    first = next(iter(opened))
    pixels, x = images_for(given, notes, first)
    labelled = functools.cache(functools.partial(some_test_images, given.data, notes, title=first, tables=given))
    images = Images(pixels, x, given.channel, labelled)
    written = write_figure(draw_maps(pixels, nets, x, layer=given.layer, channel=given.channel), given.output, "maps")
    for title, net in nets.items():
        for name, figure in _inside(net, images, title):
            written += write_figure(figure, given.output, _file_name(name))
    for path in written:
        print(path)


def _inside(net: "nn.Module", images: "Images", title: str) -> Iterator[tuple[str, Any]]:
    """Yields names and figures of what each method put into a net; says which methods have none."""
    from pocketcnn.methods import METHODS

    used = {getattr(module, "condensed_by", None) for module in net.modules()}
    for method in (name for name in METHODS if name in used):
        if (part := part_of("pocketcnn.pictures", method)) is not None:
            yield from part.draw(net, images, title)
        else:
            print(f"no pictures of method {method!r}: pocketcnn/pictures/{method}.py is missing", file=sys.stderr)


def _file_name(words: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", words)
