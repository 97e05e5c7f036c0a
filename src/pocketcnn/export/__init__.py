"""Trained nets as files that serve without this package: ONNX, dense or compact, torch.export and ExecuTorch.

Before a file is written, its outputs are compared with the net's: on ordinary images, on strange ones and in batches of
several sizes. `docs/export.md` says what each format costs.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pocketcnn.cost.params import serialized_bytes
from pocketcnn.errors import CannotExport, CannotWrite
from pocketcnn.export import executorch, onnx, torch_export
from pocketcnn.export._check import BATCHES, differences, ordinary_inputs, probes
from pocketcnn.export._trace import summary, trace
from pocketcnn.export.compact import CompactNet
from pocketcnn.export.measure import OnnxCost, measure_onnx
from pocketcnn.support.calls import ExampleSize, FlatOutputs, Inputs, named_tensors, sizes_of
from pocketcnn.support.copying import copied
from pocketcnn.support.files import write_atomically
from pocketcnn.support.modules import check_weights, uncompiled
from pocketcnn.support.timing import in_turns
from pocketcnn.surgery import materialize

__all__ = ["FORMATS", "Exported", "Format", "OnnxCost", "Speed", "export", "measure_onnx"]

Format = Literal["onnx", "onnx_compact", "executorch", "torch_export"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES = {"onnx": ".onnx", "onnx_compact": ".onnx", "executorch": ".pte", "torch_export": ".pt2"}
LARGE_BATCH = 17  # timed beside a single image


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a batch, the file and the net in turns; `ratio` is the median of the turns' ratios."""

    batch: int
    file_ms: float
    net_ms: float
    ratio: float


@dataclass(frozen=True)
class Exported:
    """The file that was written, and how it compares with the net.

    `differences` holds, for each kind of input, the largest difference from the net's outputs; `max_difference` is the
    largest over real images. `checkpoint_bytes` is the size of the net's model file without notes. With the format
    `"onnx_compact"`, `dense_bytes` is the size of the dense file, and `dense` is true if that is no larger and was written
    instead.
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
        """The largest difference over the batches of images."""
        return max(value for name, value in self.differences.items() if name.startswith(("batch", "images")))


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    input_size: ExampleSize | None = None,
    batch: int | None = None,
    opset: int | None = None,
    entropy: float | None = None,
    notes: Mapping[str, Any] | None = None,
    images: Inputs | None = None,
    timed: bool = True,
    strange: bool = True,
) -> Exported:
    """Writes a net to a file for serving. The file is checked against the net, and not written if it disagrees.

    The net in the file is in evaluation mode and float32. Layers that equal an ordinary convolution become one, and the
    batch norms after them are folded in; CondConv, involution and Global layers keep their operations.

    Args:
        model: any net from one or several tensors to one tensor, or to several in tuples, dictionaries or records; it is
            left alone. In ONNX files a single input is called `images`, several have the names of the arguments of
            `forward`; several outputs have the names of keys and fields, `output0` and so on in tuples. Other files hold
            all of them in that order.
        path: of the file, in a folder that exists.
        format: `"onnx"`; `"onnx_compact"`, which stores shared parameters once and has the graph compute where each layer
            reads them; `"torch_export"`, a `.pt2` file; or `"executorch"`, a `.pte` file.
        input_size: (channels, height, width) of an image, or the size of another example, such as (channels, length); a
            tuple of such sizes for a net of several inputs. By default that of the notes or the net, else 3x32x32.
        batch: the size of every batch; by default batches may have any size, with ExecuTorch up to 32.
        opset: ONNX's version, 18 to 23.
        entropy: in bits, as in `materialize`: a net whose depth depends on its images becomes the one that images of this
            entropy see. By default the file chooses the depth for each image, but every image costs the full depth.
        notes: of the model file; classes, mean, std and input_size are kept in ONNX and `.pt2` files.
        images: more images [number, channels, height, width] to check with, normalised; a tuple of as many tensors as
            the net takes.
        timed: times the file and the net.
        strange: checks the file also on inputs that are no images. False is for nets that return values from their inside,
            which may overflow there.
    Raises:
        ValueError: an argument out of range, or a size of images that the net does not take.
        CannotExport: the net cannot be traced, or the format has no counterpart for an operation; the layer is named.
        Disagreement: the file's outputs differ from the net's; it was not written.
        CannotWrite: the folder does not exist, or nothing can be written there.
        MissingExtra: the packages for the format are not installed.
    """
    path, notes = Path(path), dict(notes or {})
    _check_target(path, format, opset)
    size = _input_size(model, input_size, notes)
    net = _as_written(model)
    sizes = sizes_of(size, 1 if batch is None else batch)
    notes.pop("input_size", None)
    if len(sizes) == 1:  # of several inputs the file itself says the sizes
        notes["input_size"] = list(sizes[0])
    outputs = _outputs_of(net, sizes)
    names = _names_of(net, len(sizes), outputs or (onnx.OUTPUT,))
    wanted = _flat(net if entropy is None else materialize(net, entropy=entropy, partly=True), outputs)
    plain = materialize(net, entropy=entropy, fold_norm=True, input_size=size, partly=True, serving=True)
    threads = torch.get_num_threads()
    most = executorch.LARGEST if format == "executorch" else None
    example = ordinary_inputs(batch or most or 2, sizes, notes)

    def program(served: nn.Module) -> Any:
        return trace(_flat(served, outputs), example, most, fixed=batch is not None)

    dense_bytes = None
    if format == "executorch":
        content = executorch.to_executorch(program(plain))
        run = executorch.runner(content)
    elif format == "torch_export":
        content = torch_export.to_torch(program(plain), notes=notes)
        run = torch_export.runner(content)
    else:
        opset = onnx.check_opset(opset)
        content = onnx.to_onnx(program(plain), opset, notes=notes, inputs=names, outputs=outputs)
        if format == "onnx_compact":
            dense_bytes = len(content)
            traced = program(CompactNet(net, entropy, size))
            compact = onnx.to_onnx(traced, opset, notes=notes, inputs=names, outputs=outputs, compact=True)
            content = min(content, compact, key=len)
        run = onnx.runner(content, threads, names, outputs)
    found = differences(run, wanted, probes(sizes, notes, BATCHES if batch is None else (batch,), images, strange))
    speeds = tuple(_speed(run, net, ordinary_inputs(n, sizes, notes)) for n in _timed(batch) if timed)
    write_atomically(path, content)
    lengths = (len(content), serialized_bytes(model), dense_bytes, dense_bytes == len(content))
    return Exported(path, format, *lengths, opset, found, speeds, threads)


def _flat(net: nn.Module, outputs: Sequence[str] | None) -> nn.Module:
    """The net itself if it returns one tensor, else one that returns a tuple of all its tensors."""
    return net if outputs is None else FlatOutputs(net).eval()


def _as_written(model: nn.Module) -> nn.Module:
    """Copies a net to the CPU, in float32 and evaluation mode, with its weights in rows: exporters lay out nothing anew."""
    net = copied(uncompiled(model)).cpu().float().eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data = tensor.contiguous()
    return net


def _check_target(path: Path, format: str, opset: int | None) -> None:
    """Checks the arguments of `export` that say what is written where."""
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    if opset is not None and not format.startswith("onnx"):
        raise ValueError(f"only ONNX has an opset; leave it out with format {format!r}")
    if not path.parent.is_dir():
        raise CannotWrite(f"{path}: there is no folder {path.parent}; make it first")


def _timed(batch: int | None) -> tuple[int, ...]:
    """The sizes of the batches that are timed."""
    return (1, LARGE_BATCH) if batch is None else (batch,)


def _speed(run: Any, net: nn.Module, inputs: tuple[Tensor, ...]) -> Speed:
    """Times a file and its net in turns, with the same number of threads."""

    def eager() -> None:
        with torch.inference_mode():
            net(*inputs)

    turns = in_turns({"file": lambda: run(*inputs), "net": eager}, seconds=1.0, least=5, warmup=3)
    file_ms, net_ms = (1e3 * turns.median(side) for side in ("file", "net"))
    return Speed(len(inputs[0]), file_ms, net_ms, turns.ratio("file", "net").median)


def _input_size(model: Any, given: Any, notes: Mapping[str, Any]) -> ExampleSize:
    """The size of an image: the given one, else that of the notes, else that of the net, else 3x32x32."""
    check_weights(model)
    return tuple(given or notes.get("input_size") or getattr(model, "input_size", None) or (3, 32, 32))


def _names_of(net: nn.Module, count: int, taken: Sequence[str]) -> tuple[str, ...]:
    """Names what a net takes: by the arguments of its `forward` if they are several, with `_in` where an output has that name."""
    if count == 1:
        return (onnx.INPUT,)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [one.name for one in inspect.signature(net.forward).parameters.values() if one.kind in kinds]
    names: list[str] = []
    for place in range(count):
        name = named[place] if place < len(named) else f"input{place}"
        while name in (*names, *taken):
            name += "_in"
        names.append(name)
    return tuple(names)


def _outputs_of(net: nn.Module, sizes: Sequence[tuple[int, ...]]) -> tuple[str, ...] | None:
    """Checks that a net takes examples of these sizes; returns the names of its outputs if they are several, or in a container."""
    try:
        with torch.no_grad():
            y = net(*(torch.zeros(1, *size) for size in sizes))
    except Exception as error:  # whatever a foreign net raises
        size = sizes[0] if len(sizes) == 1 else sizes
        raise ValueError(
            f"{type(net).__name__} cannot take an image of {size} ({summary(error)}); give its size as input_size"
        ) from error
    if isinstance(y, Tensor):
        return None
    if not (names := tuple(named_tensors(y))):
        raise CannotExport(f"{type(net).__name__} returns a {type(y).__name__} without tensors; return tensors")
    return names
