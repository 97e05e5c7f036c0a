"""Measuring the peak memory of a net's pass."""

import contextlib
import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pocketcnn.support.calls import ExampleSize, random_inputs
from pocketcnn.support.memory import require_memory
from pocketcnn.support.modules import check_weights, device_and_dtype, evaluating, in_mode


def measure_memory(
    model: nn.Module, input_size: ExampleSize = (3, 32, 32), *, batch: int = 1, training: bool = False
) -> int:
    """Measures the peak bytes of one pass, without the net and its input.

    On a GPU this is the allocator's own peak. On the CPU it is the largest sum of tensors alive between operations, which
    leaves out the working memory of single operations.

    Args:
        model: any net; left as it was.
        input_size: (channels, height, width) of an image; a tuple of sizes for a net of several inputs.
        batch: images at once.
        training: True for forward and backward in training mode, gradients counted; else forward in evaluation mode.
    Example:
        >>> import pocketcnn as pc
        >>> net = pc.create_model("resnet20")
        >>> pc.measure_memory(net, training=True) > pc.measure_memory(net)
        True
    """
    check_weights(model)
    inputs = random_inputs(model, input_size, batch)
    device, _ = device_and_dtype(model)
    with _training(model) if training else evaluating(model):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            _run(model, inputs, training)
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
        constants = [t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor)]
        known = [t.untyped_storage() for t in (*inputs, *model.parameters(), *model.buffers(), *constants)]
        with _Live({storage._cdata for storage in known}) as live:
            _run(model, inputs, training)
        return live.peak


_SIDE, _SMALL = 64, 4 << 20  # pixels: of the image that stands for larger ones, and of batches that need no check


def check_room(model: nn.Module, input_size: tuple[int, ...], *, batch: int = 1) -> None:
    """Checks that the machine can hold a training pass of a large batch or image, estimated by a small one.

    Maps grow as the number of pixels does, so one image of at most 64x64 pixels tells what larger ones take.

    Raises:
        NotEnoughMemory: it cannot.
    """
    channels, height, width = input_size
    if batch * height * width <= _SMALL:
        return
    small = channels, min(height, _SIDE), min(width, _SIDE)
    times = batch * height * width / (small[1] * small[2])
    require_memory(
        int(times * (measure_memory(model, small, training=True) + 4 * channels * small[1] * small[2])),
        f"a pass of {batch:,} images of {channels}x{height}x{width}",
        "give smaller images or fewer at once",
    )


def _run(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> None:
    """Runs one pass, backward too in training."""
    outputs = tree_iter(model(*inputs))  # some nets return several
    learning = [y.sum() for y in outputs if training and isinstance(y, Tensor) and y.requires_grad]
    if learning:
        torch.stack(learning).sum().backward()


@contextlib.contextmanager
def _training(model: nn.Module):
    """Puts a net in training mode for a pass, then puts modes, gradients and running statistics back."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with in_mode(model, training=True):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


class _Live(TorchDispatchMode):
    """Adds up the storages that operations create, until they are freed."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
