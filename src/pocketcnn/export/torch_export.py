"""Programs as torch keeps them: `.pt2` files, which `torch.export.load` opens."""

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from pocketcnn.export._trace import quiet
from pocketcnn.export.onnx import KEY, NOTES


def to_torch(program: ExportedProgram, *, notes: Mapping[str, Any]) -> bytes:
    """Turns a program into the content of a `.pt2` file; the extra file `pocketcnn` in it holds the notes for serving."""
    file = io.BytesIO()
    kept = {name: notes[name] for name in NOTES if name in notes}
    with quiet():
        torch.export.save(program, file, extra_files={KEY: json.dumps(kept)} if kept else None)
    return file.getvalue()


def runner(content: bytes) -> Any:
    """Returns a function that runs a file on what the net takes."""
    with quiet():
        net = torch.export.load(io.BytesIO(content)).module()

    def run(*inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            return net(*inputs)

    return run
