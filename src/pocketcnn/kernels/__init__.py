"""The functions of `pocketcnn.numerics` offered fast: a fast twin where one pays, else the definition.

While a model is exported (`torch.export`) the definition is used: it holds for every batch size and backend.
"""

from typing import Any

import torch
from torch import Tensor

from pocketcnn import numerics
from pocketcnn.kernels import torch_ops
from pocketcnn.numerics import condconv2d, ring_indices, ring_kernel, stencil
from pocketcnn.numerics.dynamic_conv import Pair, accumulation_dtype
from pocketcnn.numerics.stencil import Coefficient, as_field, check_advect_diffuse

__all__ = ["advect_diffuse", "condconv2d", "involution2d", "ring_indices", "ring_kernel"]


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
    """As `pocketcnn.numerics.advect_diffuse`, with three differences: the values of tensors are not looked at; the backward
    pass takes the steps again, so that memory does not grow with their number; and there is no second derivative."""
    coefficients = {
        "velocity_x": velocity_x,
        "velocity_y": velocity_y,
        "diffusivity_x": diffusivity_x,
        "diffusivity_y": diffusivity_y,
    }
    check_advect_diffuse(source, coefficients, initial, previous, num_steps, dt, dx, dy, boundary, values=False)
    fields = [as_field(value, source, accumulation_dtype(source)) for value in coefficients.values()]
    if torch.compiler.is_exporting():
        compute: Any = stencil.march
    elif source.device.type == "cpu":
        from pocketcnn.kernels import cpu  # here, because importing numba takes half a second

        compute = cpu.advect_diffuse
    else:
        compute = torch_ops.advect_diffuse
    return compute(source, *fields, initial, previous, num_steps, dt, dx, dy, boundary)


def involution2d(
    x: Tensor, kernels: Tensor, *, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """As `pocketcnn.numerics.involution2d`."""
    compute = numerics.involution2d if torch.compiler.is_exporting() else torch_ops.involution2d
    return compute(x, kernels, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
