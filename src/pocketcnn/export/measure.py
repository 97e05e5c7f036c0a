"""The cost of an ONNX file: bytes, stored weights and multiply-adds from its graph, and its time in onnxruntime."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.cost import Latency
from pocketcnn.errors import BrokenFile, PocketError
from pocketcnn.export.onnx import package, session
from pocketcnn.support.calls import ExampleSize
from pocketcnn.support.timing import first_line, in_turns

_MOST_BYTES = 2 << 30  # of a file; protobuf reads no more
_MOST_NUMBERS = 1 << 29  # in one value of the graph: 2 GiB in float32
_UNBOUNDED = ("Loop", "Scan")  # nodes whose work no shape bounds


@dataclass(frozen=True)
class OnnxCost:
    """The cost of serving a file; multiply-adds are those of one image.

    `stored_numbers` counts floating-point numbers; `table_bytes` is the size of all others, such as places on a ring.
    `generating` counts, by operator, the nodes that depend on no image: they make kernels, and onnxruntime runs them once,
    when it loads the file. Their multiply-adds are `generating_macs` and are not part of `macs`.
    """

    input_size: ExampleSize
    size_bytes: int
    stored_numbers: int
    table_bytes: int
    macs: int
    macs_by_operator: Mapping[str, int]
    generating: Mapping[str, int]
    generating_macs: int
    opset: int
    latency: Latency


def measure_onnx(
    path: str | Path, *, batch: int = 1, threads: int | None = None, runs: int = 50, warmup: int = 3
) -> OnnxCost:
    """Counts and times a file.

    Args:
        path: of the file.
        batch: images in the batch that is timed; a file for batches of one size is timed with that size.
        threads: CPU threads; as many as torch uses by default.
        runs: how many passes are timed.
        warmup: how many passes run before.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: it is no ONNX file, its inputs are not batches of one size, onnxruntime cannot run it, it keeps weights in
            other files, or it asks for more memory or work than any net here.
        ValueError: a number below 1.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if min(batch, runs, threads or 1) < 1 or warmup < 0:
        raise ValueError(f"batch, threads and runs must be at least 1, got {batch}, {threads}, {runs}")
    if path.stat().st_size > _MOST_BYTES:
        raise BrokenFile(f"{path}: {path.stat().st_size:,} bytes; an ONNX file has at most {_MOST_BYTES:,}")
    content = path.read_bytes()
    model = _parsed(path, content)
    try:
        return _measured(path, content, model, batch, threads, runs, warmup)
    except PocketError:
        raise
    except Exception as error:  # onnxruntime, numpy and onnx have their own
        raise BrokenFile(f"{path}: onnxruntime cannot run it ({first_line(error)}); export it again") from error


def _measured(
    path: Path, content: bytes, model: Any, batch: int, threads: int | None, runs: int, warmup: int
) -> OnnxCost:
    """Counts and times a file that was parsed and checked."""
    graph = model.graph
    shapes = _inputs_of(path, graph)
    fixed = max(shape[0] for shape in shapes.values())
    batch, random = fixed or batch, np.random.default_rng(0)
    for _, *size in shapes.values():
        if math.prod((batch, *size)) > _MOST_NUMBERS:
            raise BrokenFile(f"{path}: takes {batch} images of {size}, more than fit in memory here; export it again")
    _check_values(path, model, shapes)
    stored, table_bytes = _stored(graph)
    feed = {name: random.random((batch, *shape[1:]), dtype=np.float32) for name, shape in shapes.items()}
    macs, generating, generating_macs = _count(model, {name: x[: fixed or 1] for name, x in feed.items()})
    threads = torch.get_num_threads() if threads is None else threads
    opened = session(content, threads)
    turns = in_turns({"file": lambda: opened.run(None, feed)}, seconds=60.0, most=runs, warmup=warmup)
    times = [1e3 * second for second in turns.seconds["file"]]
    median, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    latency = Latency(median, p95, batch, threads, "float32", "onnxruntime on the CPU", turns.rounds)
    sizes = tuple(shape[1:] for shape in shapes.values())
    return OnnxCost(
        sizes[0] if len(sizes) == 1 else sizes, len(content), stored, table_bytes, sum(macs.values()), macs, generating, generating_macs, opset,
        latency,
    )  # fmt: skip


def _inputs_of(path: Path, graph: Any) -> dict[str, tuple[int, ...]]:
    """The batch, 0 if it may be any, and the size of an example, for images channels, height and width, by the input's name."""
    known = {tensor.name for tensor in graph.initializer}
    given = {value.name: value.type.tensor_type for value in graph.input if value.name not in known}
    shapes = {name: tuple(side.dim_value for side in kind.shape.dim) for name, kind in given.items()}
    floats = package("onnx").TensorProto.FLOAT
    if (
        not shapes
        or any(kind.elem_type != floats for kind in given.values())
        or any(not 2 <= len(shape) <= 5 or min(shape[1:]) < 1 or shape[0] < 0 for shape in shapes.values())
        or len({shape[0] for shape in shapes.values()}) > 1
    ):
        raise BrokenFile(f"{path}: its inputs are not batches of float32 images, or other examples, of one size")
    return shapes


def _check_tensors(path: Path, model: Any, length: int) -> None:
    """Checks that the file itself holds its weights.

    Raises:
        BrokenFile: a tensor lies in another file, or is longer than this one.
    """
    onnx = package("onnx")
    for tensor in _messages(model, "TensorProto"):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BrokenFile(
                f"{path}: keeps {tensor.name or 'a weight'} in another file, which is not opened; export it with its weights "
                "inside"
            )
        if math.prod(tensor.dims) > 8 * length:
            raise BrokenFile(f"{path}: {tensor.name or 'a tensor'} is longer than the file; copy or export it again")


def _check_values(path: Path, model: Any, given: Collection[str]) -> None:
    """Checks that shapes bound what a run takes.

    Raises:
        BrokenFile: a value is too large, or there is a loop.
    """
    if found := next((node.op_type for node in _messages(model, "NodeProto") if node.op_type in _UNBOUNDED), None):
        raise BrokenFile(f"{path}: has a {found}, whose work nothing bounds; export it without loops")
    inferred = package("onnx.shape_inference").infer_shapes(model, data_prop=True)
    for value in _messages(inferred, "ValueInfoProto"):
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if value.name not in given and math.prod(side or 1 for side in sides) > _MOST_NUMBERS:
            raise BrokenFile(
                f"{path}: its value {value.name} is {sides}, more than fits in memory here; export it again"
            )


def _messages(message: Any, kind: str) -> Iterator[Any]:
    """Yields all parts of a protobuf message that are of some kind, wherever they are nested."""
    if type(message).__name__ == kind:
        yield message
    for _, value in message.ListFields():
        if hasattr(value, "ListFields"):
            yield from _messages(value, kind)
        elif not isinstance(value, str | bytes | int | float) and len(value) and hasattr(value[0], "ListFields"):
            for part in value:
                yield from _messages(part, kind)


def _parsed(path: Path, content: bytes) -> Any:
    onnx = package("onnx")
    try:
        model = onnx.load_model_from_string(content)
        _check_tensors(path, model, len(content))
        onnx.checker.check_model(model)
    except PocketError:
        raise
    except Exception as error:  # protobuf and the checker have their own
        raise BrokenFile(f"{path}: not an ONNX file that can be read ({' '.join(str(error).split())[:120]})") from error
    return model


def _stored(graph: Any) -> tuple[int, int]:
    """Counts the floating-point numbers, and the bytes of all other numbers."""
    to_array = package("onnx.numpy_helper").to_array
    arrays = [to_array(tensor) for tensor in graph.initializer]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    return sum(a.size for a in floats), sum(a.nbytes for a in arrays) - sum(a.nbytes for a in floats)


def _count(model: Any, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, int], dict[str, int], int]:
    """Counts by operator the multiply-adds of one image and the nodes that depend on no image, and the multiply-adds of the latter.

    Shapes are those of a run, because they may depend on values that the graph computes.
    """
    graph = model.graph
    seen = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    macs: Counter[str] = Counter()
    generating: Counter[str] = Counter()
    generating_macs = 0
    sizes, count_of = _sizes(model, feed), len(next(iter(feed.values())))
    for node in graph.node:
        depends = not seen.isdisjoint(node.input)
        if depends:
            seen.update(node.output)
        elif node.op_type != "Constant":
            generating[node.op_type] += 1
        if node.op_type in _INNER:
            first, second, out = (sizes[name] for name in (*node.input[:2], node.output[0]))
            count = math.prod(out) * _INNER[node.op_type](node, first, second) // count_of
            if depends:
                macs[node.op_type] += count
            else:
                generating_macs += count * count_of
    return dict(macs), dict(generating), generating_macs


def _sizes(model: Any, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs and outputs of operators that multiply, by name."""
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer} | {
        name: x.shape for name, x in feed.items()
    }
    multiplying = [node for node in graph.node if node.op_type in _INNER]
    names = sorted({name for node in multiplying for name in (*node.input[:2], node.output[0])} - sizes.keys())
    watched = type(model)()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add().name = name
    found = session(watched.SerializeToString(), 1).run(names, dict(feed)) if names else []
    return sizes | {name: array.shape for name, array in zip(names, found, strict=True)}


def _gemm(node: Any, first: tuple[int, ...], second: tuple[int, ...]) -> int:
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return first[0] if turned else first[1]


_INNER = {
    "Conv": lambda node, first, second: math.prod(second[1:]),
    "MatMul": lambda node, first, second: first[-1],
    "Gemm": _gemm,
}
"""Multiply-adds for each number of the output, by operator."""
