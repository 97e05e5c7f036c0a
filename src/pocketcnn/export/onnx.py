"""Programs as ONNX files that hold only the arithmetic and the few notes that serving needs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from pocketcnn.errors import CannotExport
from pocketcnn.export._int8 import store_int8
from pocketcnn.export._trace import quiet, summary
from pocketcnn.support.optional import optional_import

OPSETS = range(18, 24)
"""The versions of ONNX that torch writes itself; for older ones it converts, and may fail silently."""
OPSET = 20
NOTES = ("classes", "input_size", "mean", "std")
"""The notes that serving needs, kept in the file under the key `KEY` as JSON."""
KEY = "pocketcnn"
INPUT, OUTPUT = "images", "logits"
"""Names of the input and the output of nets that have one."""
_FOLDED = 256  # the largest constant, in numbers, that is computed in advance for a compact file


def package(name: str) -> Any:
    """Imports a package of the extra `export`.

    Raises:
        MissingExtra: it is missing or broken.
    """
    return optional_import(name, extra="export", purpose="exporting to ONNX")


def check_opset(opset: int | None) -> int:
    """Checks a version of ONNX and returns it, or the default one for None.

    Raises:
        ValueError: torch cannot write this version.
    """
    opset = OPSET if opset is None else opset
    if opset not in OPSETS:
        old = f"the lowest that works is {OPSETS[0]}" if opset < OPSETS[0] else f"the highest is {OPSETS[-1]}"
        raise ValueError(f"opset {opset} of ONNX cannot be written: {old}; leave opset out for {OPSET}")
    return opset


def to_onnx(
    program: ExportedProgram,
    opset: int,
    *,
    notes: Mapping[str, Any],
    inputs: tuple[str, ...] = (INPUT,),
    outputs: tuple[str, ...] | None = None,
    compact: bool = False,
) -> bytes:
    """Turns a program into the content of an ONNX file.

    What torch writes beside the graph is removed: traces of the source code, with paths of the machine, and shapes that
    any reader can infer.

    Args:
        program: from one or several tensors to one tensor, or to a tuple of tensors.
        opset: of ONNX, one of `OPSETS`.
        notes: of a model file; those of `NOTES` are kept.
        inputs: names of what the net takes, in its order.
        outputs: names of the tensors in the tuple; None for one tensor.
        compact: leaves operations on constants in the graph where their result is large, and gives every value a name
            of a few letters.
    Raises:
        CannotExport: an operation has no counterpart in ONNX; the message names the layer.
    """
    helper, _ = package("onnx.helper"), package("onnxscript")
    try:
        with quiet():
            written: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, optimize=False, opset_version=opset,
                input_names=list(inputs), output_names=list(outputs or (OUTPUT,)),
            )  # fmt: skip
            _optimize(written.model, outputs or (OUTPUT,), compact)
            model = written.model_proto
    except Exception as error:  # the exporter has many kinds of its own
        raise CannotExport(
            f"{_place(program, error)}: ONNX has no counterpart for it ({summary(_first(error))})"
        ) from error
    if (found := {entry.domain: entry.version for entry in model.opset_import}.get("")) != opset:
        raise CannotExport(f"opset {opset} of ONNX cannot hold this net, which needs {found}; leave opset out")
    _strip(model)
    store_int8(model, helper, package("onnx.numpy_helper"))
    if compact:
        _rename(model)
    if kept := {name: notes[name] for name in NOTES if name in notes}:
        helper.set_model_props(model, {KEY: json.dumps(kept, separators=(",", ":"))})
    return model.SerializeToString()


def session(content: bytes, threads: int) -> Any:
    """Opens a file in onnxruntime on the CPU."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # without this it warns of every constant that it folds
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def runner(
    content: bytes, threads: int, inputs: tuple[str, ...] = (INPUT,), outputs: tuple[str, ...] | None = None
) -> Any:
    """Returns a function that runs a file on what the net takes, and returns one tensor or a tuple of those that are named."""
    opened = session(content, threads)

    def run(*given: torch.Tensor) -> Any:
        feed = {name: x.numpy() for name, x in zip(inputs, given, strict=True)}
        found = tuple(map(torch.from_numpy, opened.run(list(outputs or (OUTPUT,)), feed)))
        return found[0] if outputs is None else found

    return run


def _optimize(model: Any, names: Sequence[str], compact: bool) -> None:
    """Optimises a graph as torch does; if it is to be compact, except where the file would grow.

    What is computed twice goes first: sizes are computed anew for each operation, and the rest takes the square of the number
    of nodes. This is twenty times as fast for a solver of many steps.
    """
    passes = package("onnx_ir.passes.common")
    passes.CommonSubexpressionEliminationPass()(model)
    limits = {"input_size_limit": _FOLDED, "output_size_limit": _FOLDED} if compact else {}
    package("onnxscript.optimizer").optimize_ir(model, **limits)
    passes.DeduplicateHashedInitializersPass()(model)
    # Of two outputs that are equal, one has lost its name, maybe to a value inside; `names` are those of the outputs.
    for value in (value for node in model.graph for value in node.outputs if value.name in names):
        value.name = f"{value.name}/inside"
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name


def _strip(model: Any) -> None:
    """Removes names, comments and shapes that only a human reader of the graph would use."""
    del model.metadata_props[:], model.graph.value_info[:], model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = model.producer_version = ""
    for part in (
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    for node in model.graph.node:
        node.name = ""


def _rename(model: Any) -> None:
    """Gives every value the shortest free name; the names of the net's input and output stay."""
    graph = model.graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return  # graphs inside this one may use its values by name
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    fresh = (word for word in _words() if word not in names)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names[name] if name in names else names.setdefault(name, next(fresh)) for name in field]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    graph.name = "g"


def _words() -> Iterator[str]:
    """Yields a, b, ... z, aa, ab, ..."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    yield from letters
    for word in _words():
        yield from (word + letter for letter in letters)


def _first(error: BaseException) -> BaseException:
    """The first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _place(program: ExportedProgram, error: BaseException) -> str:
    """The layer and the operation that could not be translated, if the error names them."""
    chain: BaseException | None = error
    while chain is not None:
        for node in program.graph.nodes:
            if f"%{node.name} :" in str(chain):
                stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
                return f"{stack[-1] if stack else 'the net'}: {node.target}"
        chain = chain.__cause__
    return "the net"
