"""`pocketcnn export`: writes a net to a file for serving, checks its outputs against the net and times both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import some_test_images
from pocketcnn.cli.nets import input_size_of, open_net, size_of
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer
from pocketcnn.support.ranges import Count, InputSize, NotNegative, Number
from pocketcnn.support.tables import columns

if TYPE_CHECKING:
    from pocketcnn.export import Exported


def export(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Export(AnswerOptions, ForeignArguments, TableOptions):
        model: Positional[str]
        """A trained net of the package (cifar10/resnet20), a model file, the folder of a run, or a net by name."""
        format: Literal["onnx", "onnx_compact", "executorch", "torch_export"] = "onnx"
        """onnx: a kernel for each layer; onnx_compact: shared weights stored once, their places computed in the graph;
        executorch: for small devices; torch_export: for torch."""
        output: Path | None = None
        """The file to write; by default model.onnx, model.pte or model.pt2 here."""
        opset: Number | None = None
        """Version of ONNX; 20 by default."""
        entropy: NotNegative | None = None
        """Fix the depth of a net whose depth depends on the image: to that for images of this entropy, in bits."""
        batch: Count | None = None
        """Number of images in every batch; by default any number, with executorch up to 32."""
        input_size: InputSize | None = None
        """Channels, height and width of an image; by default the file's, or 3 32 32."""
        data: str | None = None
        """Check the file with 170 test images of this data set as well."""

    given = parse(Export, words, "export")
    from pocketcnn.export import SUFFIXES
    from pocketcnn.export import export as write

    opened, images = open_net(given.model, given), None
    if given.data is not None:
        images = some_test_images(given.data, opened.notes, 170, given.model, given)[1]
    if images is not None and not (given.input_size or opened.notes.input_size):
        size = tuple(images.shape[1:])
    else:
        size = input_size_of(given, opened, batch=given.batch or 1)
    found = write(
        opened.net,
        given.output or Path(f"model{SUFFIXES[given.format]}"),
        format=given.format,
        input_size=size,
        batch=given.batch,
        opset=given.opset,
        entropy=given.entropy,
        notes=opened.header,
        images=images,
    )
    _answer(found, str(opened.path or given.model), size_of(opened))
    print(f"largest difference from the net: {found.max_difference:.2g}; by what the images are: "
          + ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items()))  # fmt: skip
    for speed in found.speeds:
        print(f"batch {speed.batch}: {speed.file_ms:.3f} ms, the net in PyTorch {speed.net_ms:.3f} ms ({speed.ratio:.3g}x), "
              f"{found.threads} threads each")  # fmt: skip


def _answer(found: "Exported", title: str, before: int) -> None:
    """Answers with the sizes of the net's own file, `before` bytes long, and of the files made of it."""
    rows = [(title, before)]
    if found.dense_bytes is not None:
        why = ", smaller than a compact file, so this one was written" if found.dense else ""
        rows.append((f"dense ONNX{why}", found.dense_bytes))
    rows.append((str(found.path), found.size_bytes))
    ratios = ["", *(f"({size / before:.3f}x)" for _, size in rows[1:])]
    cells = [(name, f"{size:,} bytes", ratio) for (name, size), ratio in zip(rows, ratios, strict=True)]
    answer(
        f"{found.format}{f', opset {found.opset}' if found.opset else ''}\n{columns(cells)}",
        [{"file": name, "file_bytes": size, "ratio": size / before} for name, size in rows],
        format=found.format, opset=found.opset, file=found.path, differences=found.differences, speeds=found.speeds,
        threads=found.threads,
    )  # fmt: skip
