"""Folding batch norms into the convolutions before them, for nets that only serve.

With running statistics a batch norm multiplies each channel by a number and adds another. The convolution before it can
do that by itself, if nothing else reads its output. The net's structure does not tell; so one image is sent through a copy
of the net, and every operation is watched.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import TensorWeakRef

from pocketcnn.cost.macs import most_complex
from pocketcnn.methods._norms import fold_, reduce_
from pocketcnn.methods._passes import image_sizes
from pocketcnn.support.calls import ExampleSize, random_inputs, sizes_of
from pocketcnn.support.copying import copied
from pocketcnn.support.modules import carried_by
from pocketcnn.support.protocols import FoldsNorms


def fold_norms_(model: nn.Module, input_size: ExampleSize | None = None) -> list[str]:
    """Folds every batch norm that directly follows a convolution, and puts the net in evaluation mode.

    Layers that fold their norms by themselves (`FoldsNorms`) are asked to, and not looked into.

    Args:
        model: any net.
        input_size: as in `pocketcnn.fold_norm`.
    Returns:
        The names of the norms that are gone.
    Raises:
        ValueError: as in `pocketcnn.fold_norm`.
    """
    norms = {name: module for name, module in model.eval().named_modules() if isinstance(module, nn.BatchNorm2d)}
    for conv, norm in _pairs(model, input_size):
        with _named(norm):
            fold_(model.get_submodule(conv), norms[norm])  # type: ignore[arg-type]
    for name, layer in list(model.named_modules()):
        if isinstance(layer, FoldsNorms):
            with _named(name):
                layer.fold_norm_()
    left = set(model.modules())
    return [name for name, norm in norms.items() if norm not in left or not isinstance(norm, nn.BatchNorm2d)]


def reduce_norms_(model: nn.Module) -> None:
    """Leaves of every batch norm a factor and a summand, which is enough to serve; see `methods._norms.reduce_`.

    Norms whose weight or bias is shared, or made of other parameters, are left alone.
    """
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)

    def own(norm: nn.Module) -> bool:  # and not made of something else, nor shared
        return all(owners[id(norm._parameters.get(name))] == 1 for name in ("weight", "bias"))

    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and own(norm) and reduce_(norm) and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds the name of a module to a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name or 'the net'}: {error}") from error


def _pairs(model: nn.Module, input_size: ExampleSize | None) -> list[tuple[str, str]]:
    """Names the convolutions, and the norms that can be folded into them, found by running the net."""
    if input_size is not None:
        sizes_of(input_size)
    if not {nn.Conv2d, nn.BatchNorm2d} <= set(map(type, _seen(model))):
        return []
    failed: Exception | None = None
    sizes: list[Any] = [input_size] if input_size is not None else image_sizes(model)
    for size in sizes:
        try:
            return _watched(model, size)
        except Exception as error:  # a foreign net may raise anything about an image that it cannot take
            failed = error if failed is None or size[0] == sizes[0][0] else failed
    name = type(model).__name__
    if input_size is not None:
        raise ValueError(f"{name} cannot take an image of {input_size}: {failed}") from failed
    raise ValueError(
        f"{name} cannot take one image of any of the sizes tried: {failed}; pass input_size=(channels, height, width), "
        "or a tuple of such sizes if the net has several inputs"
    ) from failed


def _seen(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules that are in no layer that folds its norms by itself."""
    own = {part for module in model.modules() if isinstance(module, FoldsNorms) for part in module.modules()}
    return (module for module in model.modules() if module not in own)


def _watched(model: nn.Module, size: ExampleSize) -> list[tuple[str, str]]:
    """Sends an example through a copy of the net, so that the pass leaves no trace in the net itself."""
    model = copied(model)
    inputs = random_inputs(model, size)
    watch = _Watch(model)
    with torch.no_grad(), most_complex(model), watch:
        y = model(*inputs)
    names = {module: name for name, module in model.named_modules()}
    return [(names[conv], names[norm]) for conv, norm in watch.pairs(y)]


class _Watch(TorchDispatchMode):
    """Follows every convolution's output, and records which modules read the tensors of others.

    Tensors are told apart by their storage, because a view and `data` show the same values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self.norm_of: dict[nn.Module, nn.Module] = {}
        self.barred: set[nn.Module] = set()  # modules whose parameters or output something else has read
        self._outputs: dict[nn.Module, TensorWeakRef] = {}
        self._owners: dict[int | None, nn.Module] = {}
        self._busy: set[nn.Module] = set()  # modules that run now, and may read their own
        self._storages: list[Any] = []  # kept alive, so that no other tensor gets their address
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and self._owners.setdefault(_place(tensor), module) is not module:
                    self.barred |= {module, self._owners[_place(tensor)]}
        for module in _seen(model):
            if carried_by(module):
                continue
            if type(module) is nn.Conv2d:
                module.register_forward_pre_hook(self._enter_conv)
                module.register_forward_hook(self._leave_conv)
            elif type(module) is nn.BatchNorm2d:
                module.register_forward_pre_hook(self._enter_norm, with_kwargs=True)
                module.register_forward_hook(self._leave_norm)

    def pairs(self, y: Any) -> list[tuple[nn.Module, nn.Module]]:
        """Lists convolutions and norms that ran once, the one right after the other, with nothing else reading between.

        An output of a convolution that is still alive while the caller holds `y`, which the net returned, is part of `y`
        or was stored for another reader.
        """
        return [
            (conv, norm)
            for conv, norm in self.norm_of.items()
            if self.calls[conv] == self.calls[norm] == 1
            and self.barred.isdisjoint((conv, norm))
            and self._outputs[conv]() is None
        ]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tree_iter((args, kwargs)):
            owner = self._owners.get(_place(tensor)) if isinstance(tensor, Tensor) else None
            if owner is not None and owner not in self._busy:
                self.barred.add(owner)
        return func(*args, **kwargs)

    def _enter_conv(self, conv: nn.Module, args: tuple) -> None:
        self.calls[conv] += 1
        self._busy = {conv}

    def _leave_conv(self, conv: nn.Module, args: tuple, y: Tensor) -> None:
        self._busy = set()
        self._outputs[conv] = TensorWeakRef(y)
        self._owners[_place(y)] = conv
        self._storages.append(y.untyped_storage())

    def _enter_norm(self, norm: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.calls[norm] += 1
        self._busy = {norm}
        x = args[0] if args else kwargs["input"]
        conv = self._owners.get(_place(x))
        if conv in self._outputs and self._outputs[conv]() is x and conv not in self.norm_of:
            self.norm_of[conv] = norm
            self._busy = {norm, conv}
        if norm.training:  # in spite of eval()
            self.barred.add(norm)

    def _leave_norm(self, norm: nn.Module, args: tuple, y: Tensor) -> None:
        self._busy = set()


def _place(tensor: Tensor) -> int | None:
    """Identifies the storage of a tensor; None for kinds without one, such as sparse tensors."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
