"""Trained nets as files that serve without this package: ONNX, dense or compact, torch.export and ExecuTorch.

Every file is checked before it is written: it must compute what the net does, on ordinary images, on strange ones and in
batches of several sizes. `docs/export.md` says what each format costs.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pocketcnn.cost.params import serialized_bytes
from pocketcnn.errors import CannotExport, CannotWrite
from pocketcnn.export import executorch, onnx, torch_export
from pocketcnn.export._check import BATCHES, differences, ordinary_images, probes
from pocketcnn.export._trace import summary, trace
from pocketcnn.export.compact import CompactNet
from pocketcnn.export.measure import OnnxCost, measure_onnx
from pocketcnn.support.files import write_atomically
from pocketcnn.support.modules import check_input_size
from pocketcnn.support.timing import in_turns
from pocketcnn.surgery import materialize

__all__ = ["FORMATS", "Exported", "Format", "OnnxCost", "Speed", "export", "measure_onnx"]

Format = Literal["onnx", "onnx_compact", "executorch", "torch_export"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES = {"onnx": ".onnx", "onnx_compact": ".onnx", "executorch": ".pte", "torch_export": ".pt2"}
LARGE_BATCH = 17  # timed beside a single image


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a batch, in turns with the net itself; `ratio` is the median of each turn's."""

    batch: int
    file_ms: float
    net_ms: float
    ratio: float


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found when it was checked.

    `differences` are the largest from the net's outputs, for each kind of images; `max_difference` is over those that are
    images. `checkpoint_bytes` is the length of the net's model file without notes. Of a compact file `dense_bytes` is
    what the dense one would take, and `dense` says that it would be smaller and was written instead.
    """

    path: Path
    format: str
    size_bytes: int
    checkpoint_bytes: int
    dense_bytes: int | None
    dense: bool
    opset: int | None
    differences: Mapping[str, float]
    speeds: tuple[Speed, ...]
    threads: int

    @property
    def max_difference(self) -> float:
        """The largest over the batches of images."""
        return max(value for name, value in self.differences.items() if name.startswith(("batch", "images")))


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    input_size: tuple[int, int, int] | None = None,
    batch: int | None = None,
    opset: int | None = None,
    entropy: float | None = None,
    notes: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    timed: bool = True,
) -> Exported:
    """Writes a net to a file for serving, checked against the net itself; a file that disagrees is not written.

    The net in the file is in evaluation mode and float32. Layers that equal an ordinary convolution become one, with the
    batch norms after them folded in; CondConv, involution and Global layers stay what they are.

    Args:
        model: any net from images to one tensor; it is left alone.
        path: of the file, in a folder that exists.
        format: `"onnx"`; `"onnx_compact"`, which stores the shared numbers once and has the graph compute where each
            layer reads them; `"torch_export"`, a `.pt2` file; or `"executorch"`, a `.pte` file.
        input_size: (channels, height, width) of an image; by default what the notes or the net say, else 3x32x32.
        batch: images at once, always so many; by default any number, with ExecuTorch up to 32.
        opset: ONNX's version, 18 to 23.
        entropy: in bits, as in `materialize`: a net whose depth depends on its images becomes the one that images of this
            entropy see. By default such a net decides in the file, but there every image costs the full depth.
        notes: of the model file; classes, mean, std and input_size are kept in ONNX and `.pt2` files.
        images: more images [number, channels, height, width] to check with, normalised.
        timed: whether file and net are timed.
    Raises:
        ValueError: an argument out of range, or a size of images that the net does not take.
        CannotExport: the net cannot be traced, or the format has no counterpart for an operation; the layer is named.
        Disagreement: what the file computes is not what the net does; it was not written.
        CannotWrite: there is no such folder, or nothing can be written there.
        MissingExtra: the packages for the format are not installed.
    """
    path, notes = Path(path), dict(notes or {})
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    if opset is not None and not format.startswith("onnx"):
        raise ValueError(f"an opset is of ONNX; leave it out with format {format!r}")
    if not path.parent.is_dir():
        raise CannotWrite(f"{path}: there is no folder {path.parent}; make it first")
    size = _input_size(model, input_size, notes)
    notes["input_size"] = list(size)
    net = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().float().eval().requires_grad_(False)
    check_input_size(size, 1 if batch is None else batch)
    _check_output(net, size)
    wanted = net if entropy is None else materialize(net, entropy=entropy, partly=True)
    plain = materialize(net, entropy=entropy, fold_norm=True, input_size=size, partly=True)
    batches = BATCHES if batch is None else (batch,)
    threads = torch.get_num_threads()
    most = executorch.LARGEST if format == "executorch" else None
    example = ordinary_images(batch or most or 2, size, notes)

    def program(served: nn.Module) -> Any:
        return trace(served, example, most, fixed=batch is not None)

    dense_bytes, dense = None, False
    if format == "executorch":
        content = executorch.to_executorch(program(plain))
        run = executorch.runner(content)
    elif format == "torch_export":
        content = torch_export.to_torch(program(plain), notes=notes)
        run = torch_export.runner(content)
    else:
        opset = onnx.check_opset(opset)
        content = onnx.to_onnx(program(plain), opset, notes=notes)
        if format == "onnx_compact":
            small = onnx.to_onnx(program(CompactNet(net, entropy, size)), opset, notes=notes, compact=True)
            dense_bytes, dense = len(content), len(content) <= len(small)
            content = content if dense else small
        run = onnx.runner(content, threads)
    found = differences(run, wanted, probes(size, notes, batches, images))
    speeds = tuple(_speed(run, net, ordinary_images(n, size, notes)) for n in _timed(batch) if timed)
    write_atomically(path, content)
    return Exported(
        path, format, len(content), serialized_bytes(model), dense_bytes, dense, opset, found, speeds, threads
    )


def _timed(batch: int | None) -> tuple[int, ...]:
    return (1, LARGE_BATCH) if batch is None else (batch,)


def _speed(run: Any, net: nn.Module, x: Tensor) -> Speed:
    """A file against its net, with as many threads each."""

    def eager() -> None:
        with torch.inference_mode():
            net(x)

    turns = in_turns({"file": lambda: run(x), "net": eager}, seconds=1.0, least=5, warmup=3)
    file_ms, net_ms = (1e3 * turns.median(side) for side in ("file", "net"))
    return Speed(len(x), file_ms, net_ms, turns.ratio("file", "net").median)


def _input_size(model: Any, given: Any, notes: Mapping[str, Any]) -> tuple[int, int, int]:
    channels, height, width = given or notes.get("input_size") or getattr(model, "input_size", None) or (3, 32, 32)
    return channels, height, width


def _check_output(net: nn.Module, size: tuple[int, int, int]) -> None:
    """Checks that a net makes one tensor of an image of that size."""
    try:
        with torch.no_grad():
            y = net(torch.zeros(1, *size))
    except Exception as error:  # whatever a foreign net raises
        raise ValueError(
            f"{type(net).__name__} cannot take an image of {size} ({summary(error)}); give its size as input_size"
        ) from error
    if not isinstance(y, Tensor):
        raise CannotExport(
            f"{type(net).__name__} returns a {type(y).__name__}, and files are made of nets that return one tensor; wrap "
            "it in a module that picks one"
        )
