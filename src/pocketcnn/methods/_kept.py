"""Results that are kept as long as the tensors they were made from hold the same values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tells whether two tensors on one device have the same type, shape and bits; NaNs with equal bits are the same."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    kind = _INTEGERS.get(one.dtype.itemsize) if one.is_floating_point() else None
    return torch.equal(one, other) if kind is None else torch.equal(one.view(kind), other.view(kind))


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Tells whether the values of tensors can be read: of no tracer, subclass, transform of functions or CUDA graph."""
    if any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return False
    if forward_ad._current_level >= 0 or any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return False
    return not (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())


class Kept:
    """Results by key, made from source tensors and kept until a value of the sources changes; copies start empty.

    The values themselves are compared. Version counters, addresses and hooks miss fused optimizers, `functional_call`,
    writes through `.data` or numpy, and other threads.
    """

    def __init__(self) -> None:
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()

    def clear(self) -> None:
        """Forgets all results."""
        self._held: tuple[list[Tensor], Sequence[Tensor], dict[Any, Any]] = [], (), {}

    def get(
        self, key: Any, sources: Sequence[Tensor], make: Callable[[], Any], constants: Sequence[Tensor] = ()
    ) -> Any:
        """Returns the result under a key; makes it if there is none, or if anything it is made from has changed since.

        Args:
            key: tells results of the same tensors apart.
            sources: tensors whose values decide.
            make: makes the result.
            constants: tensors that are replaced but never written to.
        """
        if not is_plain(sources):
            return make()
        copies, known, made = self._held  # in one go, because another thread may replace it
        same = len(copies) == len(sources) and len(known) == len(constants)
        same = same and all(one is other for one, other in zip(known, constants, strict=True))
        if not (same and all(map(same_bits, copies, sources))):
            copies, made = [source.detach().clone() for source in sources], {}
            self._held = copies, constants, made
        if key not in made:
            made[key] = make()
        return made[key]
