"""Protocols: the members that a module may offer beyond `nn.Module`.

A module offers something by having the members; it need not inherit from a protocol. The rest of the package asks with
`isinstance(module, MakesKernel)`, so that the name of a member is written down here alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Condensed(Protocol):
    """A layer that a condensing method put in the place of ordinary ones; `is_condensed` tells."""

    condensed_by: str
    """Name of the method."""
    why_not_dense: str
    """Reason why no ordinary layer equals this one, as in "it has a kernel of its own for every pixel"; empty if one does."""


@runtime_checkable
class HasDense(Protocol):
    """A condensed layer that equals an ordinary one: always, or for images of one entropy."""

    def dense(self, entropy: float | None = None) -> nn.Module:
        """Builds the ordinary layer with equal outputs, for images of that entropy (in bits) if the layer looks at it."""
        ...


@runtime_checkable
class ServesOtherwise(Protocol):
    """A condensed layer that is cheaper than the ordinary one which it equals, if it is run in another way than that."""

    def served(self) -> nn.Module:
        """Builds ordinary layers with equal outputs, as they are to be served and exported: two convolutions for a kernel that
        is a product of two."""
        ...


@runtime_checkable
class LooksAtEntropy(Protocol):
    """A condensed layer whose ordinary equal may depend on the image's entropy."""

    needs_entropy: bool
    """True if it does depend on it."""


@runtime_checkable
class MakesKernel(Protocol):
    """A layer that stands for a convolution, with its `in_channels`, and makes the kernel instead of storing it."""

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """Makes the kernel, [out_channels, in_channels / groups, height, width]; for the images `x`, if it depends on them."""
        ...

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the parameters that exist only to make the kernel."""
        ...


@runtime_checkable
class SharesKernels(Protocol):
    """A module that layers share and whose call makes their kernels: one, or a mapping with several."""

    kernels_read_from: Mapping[str, float]
    """Names of its parameters that kernels are read off, with factors for their rates; an attribute of the class."""
    kernels_scaled_by: tuple[str, ...]
    """Names of its parameters that are factors of kernels, without a unit; an attribute of the class."""


@runtime_checkable
class StacksKernels(Protocol):
    """A layer with parameters that hold several kernels each, a row a kernel."""

    stacked_kernels: Mapping[str, tuple[int, ...]]
    """By name the shape of such a parameter: [kernels, outputs, ...]."""


@runtime_checkable
class CountsMacs(Protocol):
    """A layer with multiply-adds that no operator counter sees."""

    def extra_macs(self, *tensors: Tensor) -> Mapping[str, int]:
        """Counts them, by the name of the operation, for the inputs of `forward` and, last, its output."""
        ...


@runtime_checkable
class FoldsNorms(Protocol):
    """A layer that folds the batch norms inside it by itself."""

    def fold_norm_(self) -> None:
        """Folds them into the convolutions before them; a second call changes nothing."""
        ...


@runtime_checkable
class LearnsFromImages(Protocol):
    """A module that learns from images alone, without labels or gradients, what to expect of them."""

    def calibrate_(
        self,
        loader: Iterable[Any],
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> Any:
        """Looks at batches of images as the net is given them: `(pixel - mean) / std`, pixels within `value_range`."""
        ...


@runtime_checkable
class SetsDepth(Protocol):
    """The module that decides, image by image, how much of a net an image passes; `gauge_of` finds it."""

    levels: int
    """Number of degrees of complexity; levels are numbered from 0, the simplest images."""

    @property
    def pin(self) -> int | None:
        """The level at which it is held; None if it is free."""
        ...

    def pinned(self, level: int) -> AbstractContextManager[None]:
        """Holds it at a level inside a `with`: every image is treated as one of that level."""
        ...

    def recording(
        self, net: nn.Module
    ) -> AbstractContextManager[tuple[Callable[[Tensor], Any], list[tuple[Tensor, Tensor]]]]:
        """Records levels and measures of images inside a `with`.

        Yields a function to call with batches of images, and the record: a pair of tensors [batch] for each call.
        """
        ...


@runtime_checkable
class Listener(Protocol):
    """An object that hears of every call of a net through hooks that are its own methods."""

    def detach(self, net: nn.Module, /) -> None:
        """Removes its hooks from the net."""
        ...


@runtime_checkable
class NamesWeights(Protocol):
    """A module with parameters of one axis that are weights all the same, for storage and pruning."""

    stored_weights: tuple[str, ...]
    """Their names in the module; an attribute of the class."""


@runtime_checkable
class HoldsWholeNumbers(Protocol):
    """A module that holds whole numbers in float buffers."""

    stored_types: Mapping[str, Any]
    """Type of each such buffer in a model file."""

    def whole(self, name: str) -> Tensor:
        """Reads one, in that type."""
        ...


@runtime_checkable
class CodesNumbers(Protocol):
    """A module with stored tensors that stand for whole numbers below a limit, which packed files keep in few bits."""

    def limit_of(self, name: str) -> int | None:
        """The limit of the numbers that a tensor of the module stands for; None if it stands for none."""
        ...

    def numbers_of(self, name: str, stored: Tensor) -> Tensor:
        """The numbers, flat."""
        ...

    def stored_of(self, name: str, numbers: Tensor) -> Tensor:
        """A tensor that stands for numbers, one for each index of its first axis."""
        ...


@runtime_checkable
class TakesImages(Protocol):
    """A net that knows the size of the images it is made for."""

    input_size: tuple[int, int, int]
    """(channels, height, width)."""


def is_condensed(module: nn.Module) -> bool:
    """Tells whether a method put in the module, which then is `Condensed`."""
    return getattr(module, "condensed_by", None) is not None


def gauge_of(model: nn.Module) -> Any:
    """Finds the module that sets how much of a net an image passes, see `SetsDepth`; None if every image passes all."""
    return next((module for module in model.modules() if isinstance(module, SetsDepth)), None)
