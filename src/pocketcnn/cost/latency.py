"""Timing a forward pass: warm-up, median, tail, and the settings that the time depends on."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pocketcnn.cost.macs import most_complex
from pocketcnn.support.calls import ExampleSize, random_inputs
from pocketcnn.support.modules import check_weights, device_and_dtype, evaluating


@dataclass(frozen=True)
class Latency:
    """Time of a batch: median and 95th percentile over `runs`, with `threads` CPU threads.

    Example:
        >>> import pocketcnn as pc
        >>> time = pc.measure_latency(pc.create_model("resnet20"), batch=2, runs=3, warmup=1)
        >>> time.batch, time.dtype, time.p95_ms >= time.median_ms
        (2, 'float32', True)
    """

    median_ms: float
    p95_ms: float
    batch: int
    threads: int
    dtype: str
    device: str
    runs: int


def measure_latency(
    model: nn.Module,
    input_size: ExampleSize = (3, 32, 32),
    *,
    batch: int = 1,
    threads: int | None = None,
    runs: int = 50,
    warmup: int = 10,
) -> Latency:
    """Times forward passes of a net, in evaluation mode without gradients, on its device and in its precision.

    If the cost depends on the image, the most complex one counts.

    Args:
        model: any net; left as it was.
        input_size: (channels, height, width) of an image; a tuple of sizes for a net of several inputs.
        batch: images at once.
        threads: CPU threads to use; None leaves the setting alone.
        runs: number of passes timed.
        warmup: number of passes before.
    Raises:
        ValueError: a number below 1.
    Example:
        >>> import pocketcnn as pc
        >>> pc.measure_latency(pc.create_model("resnet20"), runs=3, warmup=1).median_ms > 0
        True
    """
    check_weights(model)
    inputs = random_inputs(model, input_size, batch)
    if runs < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise ValueError(f"runs and threads must be at least 1, got {runs}, {threads}")
    device, dtype = device_and_dtype(model)
    times = []
    with evaluating(model), most_complex(model), torch.inference_mode(), _threads(threads):
        for run in range(warmup + runs):
            start = time.perf_counter()
            model(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if run >= warmup:
                times.append(1e3 * (time.perf_counter() - start))
        used = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    median, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    return Latency(median, p95, batch, used, str(dtype).removeprefix("torch."), name, runs)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets torch's number of threads, and puts the old one back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
