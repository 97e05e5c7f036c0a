"""`pocketcnn classify`: names the likeliest classes of image files, by a trained net."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments
from pocketcnn.cli.nets import open_net
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer, complain, size_in_words
from pocketcnn.errors import BadImage, BadUsage
from pocketcnn.support.ranges import Number, Pixels
from pocketcnn.support.tables import columns

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held


def classify(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Classify(AnswerOptions, ForeignArguments):
        images: Positional[tuple[Path, ...]]
        """Image files, or folders of them; an image of another size or mode than the net's is converted."""
        model: str | None = None
        """A trained net of the package (cifar10/resnet20; models --pretrained lists them), a trained net's file, or the folder
        of a run, or a net by name with --weights; by default the package's most accurate net for cifar10."""
        image_size: Pixels | None = None
        """Side in pixels of the images that a net by name takes."""
        channels: Literal[1, 3] | None = None
        """Channels of the images that a net by name takes; 3 by default."""
        top: Number = 3
        """Number of classes shown for each image."""

    given = parse(Classify, words, "classify")
    if not given.images:
        raise BadUsage("give at least one image file")
    if given.top < 1:
        raise BadUsage(f"--top must be at least 1, not {given.top}")
    import torch

    from pocketcnn import zoo
    from pocketcnn.data.found import printable
    from pocketcnn.support.modules import device_and_dtype

    if given.model is None:
        best = max(zoo.cards(data="cifar10"), key=lambda card: card.test_accuracy, default=None)
        if best is None:
            raise BadUsage("the package holds no net that was trained on cifar10; give one with --model")
        title = best.title
    else:
        title = given.model
    opened = open_net(title, given).needs("classes", "input_size", "mean", "std")
    net, notes = opened.net, opened.notes
    images = [image for path in given.images for image in _image_files(path)]
    read = [_converted_image(image, notes.input_size, notes.reading.get("bits")) for image in images]
    x = notes.normalise(torch.stack([pixels for pixels, _ in read])).to(device_and_dtype(net)[1])
    with torch.no_grad():
        logits = torch.cat([net(batch) for batch in x.split(256)])
    classes = notes.classes
    shares, chosen = logits.float().softmax(dim=1)[:, : len(classes)].topk(min(given.top, len(classes)), dim=1)
    for _, converted in read:
        if converted:
            complain(converted)
    trained = f"trained on {notes.data}, " if notes.data else ""
    line = f"{title}: {trained}images {size_in_words(notes.input_size)}, {len(classes)} classes"
    cells, rows = [("image", *(f"{rank}." for rank in range(1, shares.shape[1] + 1)))], []
    for image, indices, row in zip(images, chosen.tolist(), shares.tolist(), strict=True):
        found = [(classes[index], share) for index, share in zip(indices, row, strict=True)]
        cells.append((printable(image), *(f"{name} {100 * share:5.1f}%" for name, share in found)))
        rows.append({"image": image, "classes": [{"class": name, "probability": share} for name, share in found]})
    answer(f"{line}\n{columns(cells)}", rows, net=title, data=notes.data or None, input_size=notes.input_size)


def _image_files(path: Path) -> list[Path]:
    """The image files of a folder, at any depth; a file is returned as it is.

    Raises:
        BadUsage: there are no images in the folder.
    """
    from pocketcnn.data.found import in_words
    from pocketcnn.data.walk import image_files

    if not os.path.isdir(path):
        return [path]
    files, found = image_files(path)
    if found.left_out:
        complain(f"{path}: left out: {in_words(found.left_out)}")
    if not files:
        raise BadUsage(f"{path}: no image files in this folder")
    return files


def _converted_image(path: Path, input_size: Sequence[int], bits: int | None) -> tuple[Any, str]:
    """Reads an image and converts it to the net's size; `bits` are those that pixels of 16 bits use.

    Returns:
        The pixels [channels, height, width], and a line that says how they were converted, empty if they were not.
    Raises:
        BadImage: the net takes images that are not square, and this one has another size.
    """
    from pocketcnn.data import read_image
    from pocketcnn.support.optional import optional_import

    channels, height, width = input_size
    pixels = read_image(path, image_size=height if height == width else None, channels=channels, bits=bits)
    with optional_import("PIL.Image", extra="train", purpose="decoding images").open(path) as image:
        had = f"{image.width}x{image.height} {'grey' if image.mode == 'L' else image.mode}"
        turned = ", turned upright" if image.getexif().get(_ORIENTATION, 1) != 1 else ""
        cropped = ", cropped to a square" if image.width != image.height else ""
    wanted = f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
    if list(pixels.shape) != list(input_size):
        raise BadImage(
            f"{path}: {had}, the net takes {wanted}, and only squares can be made from other sizes; resize it first"
        )
    converted = had != wanted or turned
    return pixels, f"{path}: {had} converted to {wanted}{turned}{cropped}" if converted else ""
