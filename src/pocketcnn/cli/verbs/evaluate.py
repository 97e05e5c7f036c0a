"""`pocketcnn evaluate`: measures accuracy and loss of a trained net on test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import completed, load_for
from pocketcnn.cli.nets import open_net, size_of
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer
from pocketcnn.support.ranges import Pixels


def evaluate(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class Evaluate(AnswerOptions, ForeignArguments, TableOptions):
        model: str
        """A trained net of the package (cifar10/resnet20; models --pretrained lists them), a trained net's file, the folder of a
        run, or a net by name (timm:resnet10t, nets/mine.py:build) with --weights."""
        data: str | None = None
        """Built-in name, hub id, folder of parquet files or of class folders; by default the data that the net was trained on."""
        image_size: Pixels | None = None
        """Resize images by their shorter side and crop the centre to a square of this side, in pixels; by default the net's."""
        channels: Literal[1, 3] | None = None
        """Convert all images to grey (1) or RGB (3); by default as the net takes them."""
        skip_bad_images: bool = False
        """Skip and count images that cannot be decoded, instead of stopping at the first."""
        tta: Literal["off", "flip", "flip_shift"] = "off"
        """Show also the scores of outputs averaged over an image and its mirror image, or over both also shifted by a pixel."""

    given = parse(Evaluate, words, "evaluate")
    from pocketcnn.train import evaluate

    opened = open_net(given.model, given).needs()
    data = load_for(
        opened.notes,
        given.data,
        given.model,
        image_size=given.image_size,
        channels=given.channels,
        skip_bad_images=given.skip_bad_images,
        tables=given,
        hint="; --image-size and --channels convert them",
    )
    opened = completed(opened, data)
    found = evaluate(opened.net, data, tta=given.tta)
    size, images = size_of(opened), len(data.test)
    lines = [
        f"{given.model}: {size:,} bytes, on {images:,} test images of {data.name}",
        f"test accuracy {100 * found['test_accuracy']:.2f} %",
        f"test loss {found['test_loss']:.4f}",
    ]
    if given.tta != "off":
        lines.append(f"test accuracy {100 * found['test_tta_accuracy']:.2f} % with outputs averaged ({given.tta})")
    row = {"net": given.model, "file_bytes": size, "images": images, **found}
    answer("\n".join(lines), [row], data=data.name, tta=given.tta)
