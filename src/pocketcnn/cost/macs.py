"""Counting multiply-adds and depth by running a net once and watching its operations."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from pocketcnn.cost.params import count_params, serialized_bytes
from pocketcnn.support.calls import ExampleSize, random_inputs
from pocketcnn.support.modules import check_weights, evaluating, hooked
from pocketcnn.support.protocols import CountsMacs, MakesKernel, gauge_of
from pocketcnn.support.tables import html_table


@dataclass(frozen=True)
class Cost:
    """Cost of a net for one image.

    `trainable_params` counts distinct trainable parameters; `total_params` adds frozen ones and running statistics.
    `generated_params` counts the parameters that the forward pass of one image uses: generated kernels instead of the
    parameters that make them. `depth` is the number of convolution and linear layers on the longest path; a layer that
    stands for a convolution counts once, however its kernel is made. `macs` are multiply-adds. `size_bytes` is the length
    of the safetensors serialisation of the distinct stored tensors. If the cost depends on the image, `macs` and `depth`
    are those of the most complex one, and `macs_min` and `macs_max` bound `macs`; else these two are None.

    Example:
        >>> import pocketcnn as pc
        >>> cost = pc.measure(pc.create_model("resnet20"))
        >>> cost.trainable_params, cost.depth
        (272474, 20)
    """

    trainable_params: int
    total_params: int
    generated_params: int
    depth: int
    macs: int
    macs_by_operator: dict[str, int] = field(hash=False)
    size_bytes: int
    macs_min: int | None = None
    macs_max: int | None = None

    def _repr_html_(self) -> str:
        """A table for notebooks: the costs that are known, those of each operator below the multiply-adds."""
        cells = [("cost", "of one image")]
        for entry in fields(self):
            value = getattr(self, entry.name)
            counts = (
                {f"macs of {name}": macs for name, macs in value.items()}
                if isinstance(value, dict)
                else {entry.name: value}
            )
            cells += [(name, f"{count:,}") for name, count in counts.items() if count is not None]
        return html_table(cells, "lr")


def measure(model: nn.Module, input_size: ExampleSize = (3, 32, 32)) -> Cost:
    """Counts a net's parameters, bytes, multiply-adds and depth for one image.

    Every convolution and matrix product that runs is counted. This includes making kernels, unless the net keeps them for
    later images. A layer with multiply-adds that no operator counter sees, such as a weighted sum, adds them itself by
    `extra_macs(x, y)`. Biases, norms, activations, pooling and Fourier transforms are not counted.

    Args:
        model: any net; it is run once in evaluation mode and left as it was.
        input_size: (channels, height, width) of the image; a tuple of sizes for a net of several inputs.
    Raises:
        UnsupportedNet: a part of the net has no weights yet.
        ValueError: not three sizes of at least 1, or a net that cannot take an image of that size.
    Example:
        >>> import pocketcnn as pc
        >>> pc.measure(pc.create_model("resnet20"), input_size=(3, 32, 32)).macs
        40813184
    """
    watch, operators = _counted(model, input_size)
    trainable, total = count_params(model)
    bounds: list[int | None] = [None, None]
    if gauge := gauge_of(model):
        for place, level in enumerate((0, gauge.levels - 1)):
            with gauge.pinned(level):
                bounds[place] = sum(_counted(model, input_size)[1].values())
    return Cost(
        trainable_params=trainable,
        total_params=total,
        generated_params=sum(p.numel() for p in model.parameters()) - watch.generator_params() + watch.generated,
        depth=watch.deepest,
        macs=sum(operators.values()),
        macs_by_operator=dict(operators),
        size_bytes=serialized_bytes(model),
        macs_min=bounds[0],
        macs_max=bounds[1],
    )


@contextlib.contextmanager
def most_complex(model: nn.Module) -> Iterator[None]:
    """Makes a net treat all images as most complex, if it tells them apart and is not pinned already."""
    gauge = gauge_of(model)
    with gauge.pinned(gauge.levels - 1) if gauge is not None and gauge.pin is None else contextlib.nullcontext():
        yield


def macs_by_module(model: nn.Module, input_size: ExampleSize = (3, 32, 32)) -> dict[str, int]:
    """Counts the multiply-adds of `measure` by the dotted name of the module they run in, those inside it included.

    Args:
        model: as in `measure`.
        input_size: as in `measure`.
    Returns:
        Only modules in which some run; a shared module has those of all its calls, under its first name.
    """
    watch, counter = _observe(model, input_size)
    prefix = f"{type(model).__name__}."
    found: Counter[str] = Counter()
    for name, operators in counter.get_flop_counts().items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] += sum(operators.values()) // 2
    for name, module in model.named_modules():
        found[name] += sum(watch.extra_of.get(inner, 0) for inner in module.modules())
    return {name: macs for name, macs in found.items() if macs and name}


def _counted(model: nn.Module, input_size: ExampleSize) -> tuple["_Watch", Counter[str]]:
    """Runs a net once; returns the watch, and the multiply-adds by operator."""
    watch, counter = _observe(model, input_size)
    operators: Counter[str] = Counter()
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        operators[operator.__name__.split(".")[0]] += flops // 2
    operators.update(watch.extra)
    return watch, operators


def _observe(model: nn.Module, input_size: ExampleSize) -> tuple["_Watch", FlopCounterMode]:
    """Runs a net once under the counters."""
    check_weights(model)
    inputs = random_inputs(model, input_size)
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), most_complex(model):
            model(*inputs)  # so that kernels that a net makes once and keeps are not counted for an image
            watch = _Watch()
            with hooked(watch.hooks_on(model)), watch, counter:
                model(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} cannot take an image of {input_size}: {error}") from error
    return watch, counter


class _Watch(TorchDispatchMode):
    """Follows the depth of every tensor through a forward pass, and asks layers for costs that operators do not show.

    A tensor is as deep as its deepest input. The output of a layer that counts is one deeper than the layer's input, and
    operations inside the layer add no depth.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depths = WeakTensorKeyDictionary()
        self.deepest = 0
        self.generated = 0
        self.extra: Counter[str] = Counter()
        self.extra_of: Counter[nn.Module] = Counter()
        self._generators: dict[int, nn.Parameter] = {}
        self._seen: set[int] = set()
        self._entered: list[int] = []

    def hooks_on(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks itself to the layers that count and to those that count their own multiply-adds."""
        for module in model.modules():
            if isinstance(module, _ConvNd | nn.Linear | MakesKernel):
                yield module.register_forward_pre_hook(self._enter, prepend=True)
                yield module.register_forward_hook(self._leave)
            elif isinstance(module, CountsMacs):
                yield module.register_forward_hook(self._ask)

    def generator_params(self) -> int:
        """Number of parameters that exist only to make kernels, in the layers that ran."""
        return sum(parameter.numel() for parameter in self._generators.values())

    def _depth(self, values: Any) -> int:
        return max((self.depths.get(t, 0) for t in tree_iter(values) if isinstance(t, Tensor)), default=0)

    def _set(self, values: Any, depth: int) -> None:
        for tensor in tree_iter(values):
            if isinstance(tensor, Tensor):
                self.depths[tensor] = depth

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        depth = self._depth((args, kwargs))
        result = func(*args, **kwargs)
        self._set(result, depth)
        return result

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        self._entered.append(self._depth(inputs))

    def _leave(self, module: Any, inputs: tuple, output: Any) -> None:
        depth = self._entered.pop() + 1
        if not self._entered:  # a layer inside another one is part of it
            self.deepest = max(self.deepest, depth)
            self._set(output, depth)
        if isinstance(module, MakesKernel) and id(module) not in self._seen:
            self._seen.add(id(module))
            self._generators |= {id(p): p for p in module.generator_parameters()}
            with _paused():
                self.generated += module.dense_weight(*inputs).numel()
        self._ask(module, inputs, output)

    def _ask(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(module, CountsMacs):
            extra = module.extra_macs(*inputs, output)
            self.extra.update(extra)
            self.extra_of[module] += sum(extra.values())


def _paused():
    """Switches off all counters, for work that is not part of the forward pass."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
