"""Programs for phones and other small devices: `.pte` files, which ExecuTorch's runtime runs without Python.

XNNPACK runs the operations that it has, if the package contains it; ExecuTorch's portable operators run the rest.
"""

from typing import Any

import torch
from torch.export import ExportedProgram

from pocketcnn.errors import CannotExport
from pocketcnn.export._trace import quiet, summary
from pocketcnn.support.optional import optional_import

LARGEST = 32
"""The largest batch: the runtime reserves memory for so many images."""


def _package(name: str) -> Any:
    with quiet():
        return optional_import(name, extra="executorch", purpose="exporting to ExecuTorch")


def to_executorch(program: ExportedProgram) -> bytes:
    """Turns a program into the content of a `.pte` file.

    Args:
        program: traced with the largest batch that it is for; XNNPACK reserves memory for it.
    Raises:
        CannotExport: an operation has no counterpart there.
    """
    exir = _package("executorch.exir")
    try:
        partitioner = _package("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
        partitioners = [partitioner()]
    except ImportError:
        partitioners = []
    try:
        with quiet():
            lowered = exir.to_edge_transform_and_lower(program, partitioner=partitioners)
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # ExecuTorch has many kinds of its own
        raise CannotExport(f"ExecuTorch has no counterpart for an operation of this net ({summary(error)})") from error


def runner(content: bytes) -> Any:
    """Returns a function that runs a file on images."""
    runtime = _package("executorch.runtime").Runtime.get()
    program = runtime.load_program(content)
    method = program.load_method("forward")

    def run(*inputs: torch.Tensor, program: Any = program) -> Any:  # keeps the program alive, which the method needs
        found = tuple(y.clone() for y in method.execute([x.contiguous() for x in inputs]))
        return found[0] if len(found) == 1 else found

    return run
