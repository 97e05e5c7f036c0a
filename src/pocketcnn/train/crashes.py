"""Convolutions that end the whole process in some versions of torch, and how a training gets round them.

A crash inside a native library cannot be caught. So what is known to crash stands in a table, `KNOWN`, and what is
unknown is tried in another process first (`pocketcnn.train.trials`). All of it concerns the CPU.
"""

import dataclasses
import logging
import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pocketcnn.data import DataSet
from pocketcnn.errors import BadData
from pocketcnn.support.layouts import in_layout
from pocketcnn.support.modules import device_and_dtype, evaluating
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.trials import first_failure

_log = logging.getLogger(__name__)
_BATCH = 2  # images with which the convolutions of a net are found; one image alone may take other paths through it


@dataclass(frozen=True)
class Convolution:
    """A convolution as a net calls it: the shapes of its input and kernel, and its settings, one for each spatial axis."""

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    bias: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    is_last: bool  # its input or its kernel had the channels last

    def __str__(self) -> str:
        size = "x".join(map(str, self.kernel[2:]))
        maps = "x".join(map(str, self.input[2:]))
        return f"a {size} convolution of stride {self.stride[-1]} on {self.input[1]} channels of {maps} pixels"


@dataclass(frozen=True)
class KnownCrash:
    """A row of the table: what crashes, in which versions of torch, on which processors."""

    what: str
    versions: tuple[str, ...]
    processors: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    layout: torch.memory_format
    holds: Callable[[Convolution], bool]

    def applies(self) -> bool:
        """Tells whether this process has the version and the processor of the row."""
        known = any(torch.__version__.startswith(f"{version}.") for version in self.versions)
        return known and platform.machine().lower() in self.processors and torch.backends.mkldnn.is_available()


def _shrinks_by_one_pixel_kernels(call: Convolution) -> bool:
    return (
        not call.transposed
        and set(call.kernel[2:]) == {1}
        and set(call.stride) != {1}
        and set(call.padding) == {0}
        and call.groups == 1
        and call.input[1] < 16
    )


KNOWN = (
    # oneDNN 3.12 copies the pixels that such a convolution uses, sixteen channels at a time, also where there are fewer.
    # Whether the process dies depends on what lies behind the copy: from maps of 56 pixels on it nearly always does.
    KnownCrash(
        what="the backward pass of 1x1 convolutions of a stride above 1 and fewer than 16 channels, channels last",
        versions=("2.13",),
        processors=("x86_64", "amd64"),
        dtypes=(torch.float32, torch.bfloat16),
        layout=torch.channels_last,
        holds=_shrinks_by_one_pixel_kernels,
    ),
)
"""What is known to end the process."""
EXAMINED = ("2.13",)
"""Versions of torch in which `KNOWN` was looked for."""


class _Convolutions(TorchDispatchMode):
    """Collects the convolutions of a pass, however they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Convolution, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, kernel, bias, stride, padding, dilation, transposed, output_padding, groups = args
            call = Convolution(
                tuple(x.shape), tuple(kernel.shape), bias is not None, tuple(stride), tuple(padding), tuple(dilation),
                transposed, tuple(output_padding), groups, _is_last(x) or _is_last(kernel),
            )  # fmt: skip
            self.found[call] = None
        return func(*args, **(kwargs or {}))


def _is_last(x: Tensor) -> bool:
    """Tells whether torch takes a tensor for channels last, by its strides."""
    return x.dim() == 4 and in_layout(x, torch.channels_last) is x and in_layout(x, torch.contiguous_format) is not x


def convolutions_of(model: nn.Module, input_size: tuple[int, ...]) -> tuple[Convolution, ...]:
    """Finds the different convolutions that a net runs for two images.

    Args:
        model: any net; left as it was.
        input_size: (channels, height, width) of an image.
    """
    device, dtype = device_and_dtype(model)
    images = torch.zeros(_BATCH, *input_size, device=device, dtype=dtype)
    with evaluating(model), torch.random.fork_rng(), _Convolutions() as calls:
        model(images)
    return tuple(calls.found)


def known_crash(calls: Collection[Convolution], dtype: torch.dtype, layout: torch.memory_format) -> str:
    """Says which of some convolutions is known to end the process; "" if none is."""
    for row in KNOWN:
        found = next(filter(row.holds, calls), None)
        if found and row.applies() and dtype in row.dtypes and layout == row.layout:
            return f"{found}: torch {torch.__version__} can crash in {row.what}"
    return ""


def crash_in(
    calls: Collection[Convolution],
    dtype: torch.dtype,
    layout: torch.memory_format,
    batch: int,
    *,
    always_try: bool = False,
) -> str:
    """Says why a dtype and layout cannot be used on the CPU for some convolutions; "" if they can.

    Args:
        calls: as `convolutions_of` finds them.
        dtype: of the arithmetic.
        layout: of images and kernels.
        batch: images in a step.
        always_try: also train the convolutions in another process, which takes seconds at the first time. By default
            that is done only in versions of torch that were not examined for crashes.
    """
    if known := known_crash(calls, dtype, layout):
        return known
    if not always_try and any(torch.__version__.startswith(f"{version}.") for version in EXAMINED):
        return ""
    scaled = [
        dataclasses.replace(call, input=(call.input[0] * batch // _BATCH or 1, *call.input[1:])) for call in calls
    ]
    return first_failure([dataclasses.asdict(call) for call in scaled], dtype, layout)


def refuse_crash(config: TrainConfig, model: nn.Module, data: DataSet, device: torch.device) -> None:
    """Checks that a net, put in the plain layout, does not itself choose the layout in which it would end the process.

    Raises:
        BadData: it does.
    """
    if config.channels_last != "off" or device.type != "cpu":
        return
    dtype = torch.bfloat16 if config.precision == "bfloat16" else device_and_dtype(model)[1]
    calls = [call for call in convolutions_of(model, data.input_size) if call.is_last]
    if reason := known_crash(calls, dtype, torch.channels_last):
        raise BadData(
            f"{reason}; the net itself puts its features in this layout; let its forward leave the layout alone, or give "
            "these convolutions 16 channels or more"
        )


def without_crash(config: TrainConfig, model: nn.Module, data: DataSet, device: torch.device) -> TrainConfig:
    """Returns a configuration with the plain layout in place of `channels_last` `"on"`, if that would end the process.

    The reason is logged.
    """
    if config.channels_last != "on" or device.type != "cpu":
        return config
    dtype = torch.bfloat16 if config.precision == "bfloat16" else device_and_dtype(model)[1]
    calls = convolutions_of(model, data.input_size)
    if not (reason := crash_in(calls, dtype, torch.channels_last, config.batch_size)):
        return config
    _log.warning("channels_last on is not used: %s; the net trains in the plain layout", reason)
    return dataclasses.replace(config, channels_last="off")
