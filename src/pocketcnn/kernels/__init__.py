"""The functions of `pocketcnn.numerics` offered fast: a fast twin where one pays, else the definition.

The definition is used wherever only it will do: while a model is exported or traced, for every batch size and backend; and
for derivatives that no twin has (forward-mode, those of `torch.func`, and gradients of gradients).
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pocketcnn import numerics
from pocketcnn.kernels import torch_ops
from pocketcnn.numerics import condconv2d, ring_indices, ring_kernel, stencil
from pocketcnn.numerics._shapes import Pair, accumulation_dtype, is_recorded, is_transformed
from pocketcnn.numerics.stencil import Coefficient, as_field, check_advect_diffuse, check_formed, check_table

__all__ = [
    "advect_diffuse",
    "advect_diffuse_formed",
    "compiled",
    "condconv2d",
    "depthwise_moments",
    "involution2d",
    "nearest_windows",
    "ring_indices",
    "ring_kernel",
]

_COEFFICIENTS = ("velocity_x", "velocity_y", "diffusivity_x", "diffusivity_y")


def _defined() -> bool:
    """Tells whether only the definition will do."""
    return is_recorded() or is_transformed()


def compiled(x: Tensor) -> bool:
    """Tells whether there are compiled kernels for tensors like this one; where only the definition will do there are none.

    The first call imports numba, which takes half a second. If it is missing or broken, one warning says so and the
    definitions are used.
    """
    return x.device.type == "cpu" and not _defined() and _has_numba()


def _has_numba() -> bool:
    return _import_numba()


# The compiler takes the answer as a constant. `torch.compiler.assume_constant_result` sets this mark, and nothing else, but
# imports the compiler for it, which would double the time that importing this package takes.
_has_numba._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _import_numba() -> bool:
    try:
        # They register their operators.
        from pocketcnn.kernels import cpu_involution, cpu_solver, cpu_windows  # noqa: F401
    except Exception as error:  # a broken package may raise anything
        warnings.warn(
            f"numba cannot be used ({type(error).__name__}: {error}): layers that solve equations or have a kernel for every "
            "pixel, and fits of windows, run several times slower; pip install numba",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def advect_diffuse(
    source: Tensor,
    velocity_x: Coefficient,
    velocity_y: Coefficient,
    diffusivity_x: Coefficient,
    diffusivity_y: Coefficient,
    *,
    initial: Tensor | None = None,
    previous: Tensor | None = None,
    num_steps: int = 5,
    dt: float = 0.2,
    dx: float = 1.0,
    dy: float = 1.0,
    boundary: str = "periodic",
) -> Tensor:
    """Computes `pocketcnn.numerics.advect_diffuse` with two differences: values of tensors are not checked; and the backward
    pass takes the steps again, so memory does not grow with their number. Gradients of gradients are the definition's."""
    coefficients = dict(zip(_COEFFICIENTS, (velocity_x, velocity_y, diffusivity_x, diffusivity_y), strict=True))
    check_advect_diffuse(source, coefficients, initial, previous, num_steps, dt, dx, dy, boundary, values=False)
    fields = (as_field(value, source, accumulation_dtype(source)) for value in coefficients.values())
    tensors: Any = (source, *fields, initial, previous)
    settings: Any = (num_steps, dt, dx, dy, boundary)
    if _defined():
        return stencil.march(*tensors, *settings)
    if compiled(source):
        return torch.ops.pocketcnn.advect_diffuse(*tensors, None, [-1] * 4, False, *settings)
    return torch_ops.advect_diffuse(*tensors, *settings)


def advect_diffuse_formed(
    source: Tensor,
    formed: Tensor,
    uses: Sequence[int],
    coefficients: Sequence[Coefficient],
    *,
    rectified: bool = True,
    initial: Tensor | None = None,
    num_steps: int = 5,
    dt: float = 0.2,
    dx: float = 1.0,
    dy: float = 1.0,
    boundary: str = "periodic",
    after: Tensor | None = None,
) -> Tensor:
    """Computes `pocketcnn.numerics.advect_diffuse_formed` with the differences of `advect_diffuse`.

    What `after` [2, channels] adds: the result is multiplied by the first row, the second is added, and what is below 0
    becomes 0. Where there are compiled kernels that has no gradient.
    """
    settings = (num_steps, dt, dx, dy, boundary)
    if after is not None and after.shape != (2, source.shape[1]):
        raise ValueError(f"after must be [2, {source.shape[1]}], got {list(after.shape)}")
    if not compiled(source):
        made = stencil.form(source, formed, uses, coefficients, rectified)
        y = advect_diffuse(source, *made, initial=initial, num_steps=num_steps, dt=dt, dx=dx, dy=dy, boundary=boundary)
        return y if after is None else (y * after[0, :, None, None] + after[1, :, None, None]).relu().to(y.dtype)
    check_formed(source, formed, uses)
    given = {name: c for name, c, use in zip(_COEFFICIENTS, coefficients, uses, strict=True) if use < 0}
    check_advect_diffuse(source, given, initial, None, *settings, values=False)
    dtype = accumulation_dtype(source)
    fields = [as_field(0.0 if use >= 0 else c, source, dtype) for use, c in zip(uses, coefficients, strict=True)]
    return torch.ops.pocketcnn.advect_diffuse(
        source, *fields, initial, None, formed, list(uses), rectified, *settings, after
    )


def depthwise_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `pocketcnn.numerics.depthwise_moments`."""
    check_table(x, weights, 9)
    return (torch.ops.pocketcnn if compiled(x) else numerics).depthwise_moments(x, weights)


def involution2d(
    x: Tensor, kernels: Tensor, *, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """Computes `pocketcnn.numerics.involution2d`."""
    compiled(x)  # registers the operator's compiled form
    compute = numerics.involution2d if _defined() else torch_ops.involution2d
    return compute(x, kernels, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)


def nearest_windows(rows: Tensor, windows: Tensor) -> Tensor:
    """Computes `pocketcnn.numerics.nearest_windows`."""
    if compiled(rows) and rows.dtype == torch.float32:
        from pocketcnn.kernels import cpu_windows

        return cpu_windows.nearest_windows(rows, windows)
    return numerics.nearest_windows(rows, windows)
