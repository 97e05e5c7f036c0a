"""`pocketcnn picture`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcnn.cli.nets import common_notes, images_for, load_net, model_files, some_test_images
from pocketcnn.cli.parsing import parse


def picture(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass
    class Picture:
        models: Positional[tuple[Path, ...]]
        """Model files, or folders of runs."""
        data: str | None = None
        """Whose test images are shown; what the first net was trained on by default."""
        images: tuple[int, ...] = (0, 1, 2)
        """Numbers of the test images; fields and the kernels of pixels are drawn for the first."""
        image_file: Path | None = None
        """An image file instead."""
        layer: str | None = None
        """Dotted name of the module whose map is shown; all of one net, the last of several."""
        channel: int | None = None
        """Channel of the maps; their mean, and of fields the one that changes most, by default."""
        titles: tuple[str, ...] = ()
        """What the nets are called in the pictures; the names of their folders by default."""
        output: Path = Path("runs/pictures")
        """Folder for the PNG and SVG files."""

    given = parse(Picture, words, "picture")
    from pocketcnn import checkpoint
    from pocketcnn.methods.condconv import CondConv2d
    from pocketcnn.methods.involution import Involution2d
    from pocketcnn.methods.pde import GlobalLayer
    from pocketcnn.methods.puppet import gauge_of, puppeteers_of
    from pocketcnn.methods.ring import RingConv2d
    from pocketcnn.pictures import (
        draw_fields,
        draw_kernels,
        draw_levels,
        draw_maps,
        draw_pixel_kernels,
        draw_ring,
        draw_routing,
        solver_fields,
        write_figure,
    )  # fmt: skip

    files = model_files(given.models, given.titles)
    nets = {title: load_net(path) for title, path in files.items()}
    notes = common_notes({title: checkpoint.read_header(path)["notes"] for title, path in files.items()})
    pixels, x = images_for(given, notes)
    written = write_figure(draw_maps(pixels, nets, x, layer=given.layer, channel=given.channel), given.output, "maps")

    def write(figure: Any, name: str) -> None:
        written.extend(write_figure(figure, given.output, _file_name(name)))

    for title, net in nets.items():
        for name, module in net.named_modules():
            if isinstance(module, GlobalLayer):
                fields = solver_fields(net, name, x[:1])
                shown = draw_fields(pixels[0], fields, title=f"{title}: {name}", channel=given.channel)
                write(shown, f"fields-{title}-{name}")
        gauge = gauge_of(net)
        if gauge is not None and gauge.measure != "features":  # which no reader could see
            write(draw_levels(*some_test_images(given.data, notes, 10_000), net, title=title), f"levels-{title}")
        for number, puppeteer in enumerate(puppeteers_of(net)):
            write(draw_kernels(puppeteer, title=title), f"kernels-{title}-{number}")
        kinds = {type(module) for module in net.modules()}
        if CondConv2d in kinds:
            _, many, labels, classes = some_test_images(given.data, notes, 1000)
            write(draw_routing(net, many, labels, classes, title=title), f"routing-{title}")
        if Involution2d in kinds:
            write(draw_pixel_kernels(net, pixels[0], x[:1], title=title), f"pixels-{title}")
        if RingConv2d in kinds:
            write(draw_ring(net, title=title), f"ring-{title}")
    for path in written:
        print(path)


def _file_name(words: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", words)
