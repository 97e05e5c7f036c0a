"""A process of its own that trains convolutions it is told of on stdin, and reports each; `pocketcnn.train.trials` starts it."""

import contextlib
import json
import sys
from typing import Any

import torch


def main() -> None:
    """Reads the task, and runs each convolution forward and backward once."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is expected; nobody will look at its core
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    for call in task["calls"]:
        _train(call, getattr(torch, task["dtype"]), getattr(torch, task["layout"]))
        print("passed", flush=True)


def _train(call: dict[str, Any], dtype: torch.dtype, layout: torch.memory_format) -> None:
    def tensor(shape: list[int]) -> torch.Tensor:
        made = torch.randn(shape).to(dtype)
        return (made.contiguous(memory_format=layout) if made.dim() == 4 else made).requires_grad_()

    x, kernel = tensor(call["input"]), tensor(call["kernel"])
    channels = call["kernel"][1] * call["groups"] if call["transposed"] else call["kernel"][0]
    bias = tensor([channels]) if call["bias"] else None
    settings = [call[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    y = torch.convolution(x, kernel, bias, *settings)
    y.backward(torch.ones_like(y))


if __name__ == "__main__":
    main()
