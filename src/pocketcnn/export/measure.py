"""The cost of an ONNX file: bytes, stored weights and multiply-adds from its graph, and its time in onnxruntime."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.cost import Latency
from pocketcnn.errors import BrokenFile
from pocketcnn.export.onnx import package, session
from pocketcnn.support.timing import in_turns


@dataclass(frozen=True)
class OnnxCost:
    """The cost of serving a file; multiply-adds are those of one image.

    `stored_numbers` counts floating-point numbers; `table_bytes` is the size of all others, such as places on a ring.
    `generating` counts, by operator, the nodes that depend on no image: they make kernels, and onnxruntime runs them once,
    when it loads the file. Their multiply-adds are `generating_macs` and are not part of `macs`.
    """

    input_size: tuple[int, ...]
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
        BrokenFile: it is no ONNX file, or its input is not a batch of images.
        ValueError: a number below 1.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if min(batch, runs, threads or 1) < 1 or warmup < 0:
        raise ValueError(f"batch, threads and runs must be at least 1, got {batch}, {threads}, {runs}")
    content = path.read_bytes()
    model = _parsed(path, content)
    graph = model.graph
    stored, table_bytes = _stored(graph)
    known = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in known]
    shape = given[0].type.tensor_type.shape.dim if len(given) == 1 else []
    if len(shape) != 4 or not all(side.dim_value for side in shape[1:]):
        raise BrokenFile(f"{path}: its input is not [batch, channels, height, width] of images of one size")
    size = tuple(side.dim_value for side in shape[1:])
    batch = shape[0].dim_value or batch
    x = np.random.default_rng(0).random((batch, *size), dtype=np.float32)
    macs, generating, generating_macs = _count(model, x[: shape[0].dim_value or 1])
    threads = torch.get_num_threads() if threads is None else threads
    opened = session(content, threads)
    turns = in_turns({"file": lambda: opened.run(None, {given[0].name: x})}, seconds=60.0, most=runs, warmup=warmup)
    times = [1e3 * second for second in turns.seconds["file"]]
    median, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    latency = Latency(median, p95, batch, threads, "float32", "onnxruntime on the CPU", turns.rounds)
    return OnnxCost(
        size, len(content), stored, table_bytes, sum(macs.values()), macs, generating, generating_macs, opset,
        latency,
    )  # fmt: skip


def _parsed(path: Path, content: bytes) -> Any:
    onnx = package("onnx")
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker have their own
        raise BrokenFile(f"{path}: not an ONNX file that can be read ({' '.join(str(error).split())[:120]})") from error
    return model


def _stored(graph: Any) -> tuple[int, int]:
    """Counts the floating-point numbers, and the bytes of all other numbers."""
    to_array = package("onnx.numpy_helper").to_array
    arrays = [to_array(tensor) for tensor in graph.initializer]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    return sum(a.size for a in floats), sum(a.nbytes for a in arrays) - sum(a.nbytes for a in floats)


def _count(model: Any, x: np.ndarray) -> tuple[dict[str, int], dict[str, int], int]:
    """Counts by operator the multiply-adds of one image and the nodes that depend on no image, and the multiply-adds of the latter.

    Shapes are those of a run, because they may depend on values that the graph computes.
    """
    graph = model.graph
    seen = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    macs: Counter[str] = Counter()
    generating: Counter[str] = Counter()
    generating_macs = 0
    sizes = _sizes(model, x)
    for node in graph.node:
        depends = not seen.isdisjoint(node.input)
        if depends:
            seen.update(node.output)
        elif node.op_type != "Constant":
            generating[node.op_type] += 1
        if node.op_type in _INNER:
            first, second, out = (sizes[name] for name in (*node.input[:2], node.output[0]))
            count = math.prod(out) * _INNER[node.op_type](node, first, second) // len(x)
            if depends:
                macs[node.op_type] += count
            else:
                generating_macs += count * len(x)
    return dict(macs), dict(generating), generating_macs


def _sizes(model: Any, x: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs and outputs of operators that multiply, by name."""
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer} | {graph.input[0].name: x.shape}
    multiplying = [node for node in graph.node if node.op_type in _INNER]
    names = sorted({name for node in multiplying for name in (*node.input[:2], node.output[0])} - sizes.keys())
    watched = type(model)()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add().name = name
    found = session(watched.SerializeToString(), 1).run(names, {graph.input[0].name: x}) if names else []
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
