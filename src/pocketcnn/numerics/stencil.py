"""Advection and diffusion on a grid of pixels: the solver behind the Global layer, and what feeds it.

Sources: Kag & Saligrama, Condensing CNNs with Partial Differential Equations, CVPR 2022; Du & Frankel, 1953 (the
diffusion scheme); Perona & Malik, 1990 (edge-stopping diffusivity). Fields are [batch, channels, height, width]; x runs
along the width, y along the height. Images and channels never mix.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.numerics._shapes import accumulation_dtype, is_recorded

BOUNDARIES = ("periodic", "replicate", "reflect", "zero")
Coefficient = Float[Tensor, "..."] | float | int
_X, _Y = -1, -2


def advect_diffuse(
    source: Float[Tensor, "batch channels height width"],
    velocity_x: Coefficient,
    velocity_y: Coefficient,
    diffusivity_x: Coefficient,
    diffusivity_y: Coefficient,
    *,
    initial: Float[Tensor, "batch channels height width"] | None = None,
    previous: Float[Tensor, "batch channels height width"] | None = None,
    num_steps: int = 5,
    dt: float = 0.2,
    dx: float = 1.0,
    dy: float = 1.0,
    boundary: str = "periodic",
) -> Float[Tensor, "batch channels height width"]:
    """Carries a field along a velocity and spreads it out, for some steps of time.

    Scheme: with A = v dt/dx, B = D dt/dx^2 along each axis, E = dt (du/dx + dv/dy) by central differences,
    L = 1 + 2 Bx + 2 By and M = 1 - 2 Bx - 2 By,

        L H[k+1] = M H[k-1] - 2 E H[k] + 2 dt f + (2 Bx - Ax) H[k, x+1] + (2 Bx + Ax) H[k, x-1]
                                                + (2 By - Ay) H[k, y+1] + (2 By + Ay) H[k, y-1]

    which is leap-frog for advection and Du Fort-Frankel for diffusion. Velocity and diffusivity stay as they are.

    What it discretises: dH/dt = Dx H_xx + Dy H_yy - d(u H)/dx - d(v H)/dy + f. That is div(D grad H) only where D is
    constant; the term grad D . grad H is not in it. A positive velocity carries features towards larger coordinates.

    Order: 2 in dt and in dx for advection. Du Fort-Frankel's error is of order dt^2 + dx^2 + (dt/dx)^2: with dt in
    proportion to dx^2 it converges at order 2 in dx; with dt/dx fixed it converges to another equation.

    Stability: with constant D and no velocity it is bounded for every dt, though steps far beyond dx^2/D let the mean and
    the checkerboard swing to about 1 + 4 D dt/dx^2 times their size. With constant velocity it needs
    |u| dt/dx + |v| dt/dy <= 1 (`courant` measures it). Where div v is not zero, leap-frog has a growing mode whatever the
    step: a few steps amplify it a few times, many steps without end.

    Boundary: the rule holds for H and for the velocity inside its divergence. `periodic` wraps around, `replicate`
    repeats the pixel at the border, `reflect` mirrors without repeating it, `zero` continues with 0.

    Args:
        source: f, added at every step; [batch, channels, height, width].
        velocity_x: u, in distance per time; a number, or a tensor that broadcasts to the source's shape.
        velocity_y: v, likewise.
        diffusivity_x: Dx, in squared distance per time, not negative; like the velocity a number or a tensor.
        diffusivity_y: Dy, likewise.
        initial: H[0]; None means `source`.
        previous: H[-1]; None means `source`.
        num_steps: how many steps, 0 or more.
        dt: length of a step in time.
        dx: distance of pixels along the width.
        dy: distance of pixels along the height.
        boundary: one of `BOUNDARIES`.
    Returns:
        H[num_steps], in the dtype of `source`; the steps are taken in float32 when that is of lower precision.
    Raises:
        ValueError: a coefficient that does not broadcast to the field, a negative diffusivity, a step or distance that is
            not positive, an unknown boundary, or `reflect` on an axis of one pixel.
    Cost: 6 multiply-adds a number and step, and 9 a number once.
    Source: Kag & Saligrama, section 3; their code has the velocity's opposite sign and is periodic only.
    Example:
        >>> dot = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])  # moves a whole pixel a step to the right
        >>> before = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
        >>> still = torch.zeros_like(dot)
        >>> advect_diffuse(still, 1, 0, 0, 0, initial=dot, previous=before, num_steps=2, dt=1.0)
        tensor([[[[0., 0., 0., 1.]]]])
    """
    coefficients = {
        "velocity_x": velocity_x,
        "velocity_y": velocity_y,
        "diffusivity_x": diffusivity_x,
        "diffusivity_y": diffusivity_y,
    }
    check_advect_diffuse(source, coefficients, initial, previous, num_steps, dt, dx, dy, boundary)
    dtype = accumulation_dtype(source)
    u, v, along_x, along_y = (as_field(value, source, dtype) for value in coefficients.values())
    return march(source, u, v, along_x, along_y, initial, previous, num_steps, dt, dx, dy, boundary)


def advect_diffuse_formed(
    source: Float[Tensor, "batch channels height width"],
    formed: Float[Tensor, "kernels 11 channels"],
    uses: Sequence[int],
    coefficients: Sequence[Coefficient],
    *,
    rectified: bool = True,
    initial: Float[Tensor, "batch channels height width"] | None = None,
    num_steps: int = 5,
    dt: float = 0.2,
    dx: float = 1.0,
    dy: float = 1.0,
    boundary: str = "periodic",
) -> Float[Tensor, "batch channels height width"]:
    """`advect_diffuse` with coefficients that depthwise convolutions make from the source.

    Args:
        source: as there; the convolutions are 3x3 and pad it with zeros.
        formed: for each convolution and channel nine weights, row by row; the factor of their sum; and the summand after
            that. A batch norm becomes the last two.
        uses: number of the convolution that makes u, v, Dx and Dy; -1 for none. Several may use the same.
        coefficients: u, v, Dx and Dy where no convolution makes them, as in `advect_diffuse`.
        rectified: cuts velocities made by convolutions off below 0; diffusivities always are.
        initial: as in `advect_diffuse`; so are the others.
        num_steps: as there.
        dt: as there.
        dx: as there.
        dy: as there.
        boundary: as there.
    Returns:
        As there.
    Raises:
        ValueError: as there; or `formed` or `uses` do not fit.
    Cost: as there, and 10 multiply-adds a number for each convolution.
    """
    values = form(source, formed, uses, coefficients, rectified)
    return advect_diffuse(source, *values, initial=initial, num_steps=num_steps, dt=dt, dx=dx, dy=dy, boundary=boundary)


def form(
    source: Tensor, formed: Tensor, uses: Sequence[int], coefficients: Sequence[Coefficient], rectified: bool
) -> list[Coefficient]:
    """Makes u, v, Dx and Dy of `advect_diffuse_formed`."""
    check_formed(source, formed, uses)
    made = _convolved(source, formed[:, :9])
    values = list(coefficients)
    for place, use in enumerate(uses):
        if use >= 0:
            scale, shift = (formed[use, row, :, None, None].to(made[use].dtype) for row in (9, 10))
            value = made[use] * scale + shift
            values[place] = value.relu() if rectified or place > 1 else value
    return values


def depthwise_moments(
    x: Float[Tensor, "batch channels height width"], weights: Float[Tensor, "kernels 9 channels"]
) -> tuple[Float[Tensor, "kernels channels"], Float[Tensor, "kernels channels"]]:
    """Mean and variance, over images and pixels, of the outputs of 3x3 depthwise convolutions.

    Args:
        x: the images, padded with zeros.
        weights: of the convolutions, row by row.
    Returns:
        Means and variances (divided by the count, not by one less), in at least float32; 0 without images.
    Raises:
        ValueError: the weights are not nine for each channel of the images.
    Cost: 11 multiply-adds a number for each convolution.
    """
    check_table(x, weights, 9)
    if not is_recorded() and not len(x):
        none = 0 * (weights.sum(1) + x.sum()).to(accumulation_dtype(x))
        return none, none.clone()
    variance, mean = torch.var_mean(torch.stack(_convolved(x, weights)), dim=(1, 3, 4), correction=0)
    return mean, variance


def _convolved(x: Tensor, weights: Tensor) -> list[Tensor]:
    """Applies 3x3 depthwise convolutions, with weights [kernels, 9, channels]."""
    dtype, channels = accumulation_dtype(x), x.shape[1]
    kernels = weights.to(dtype).transpose(1, 2).reshape(-1, channels, 1, 3, 3)
    return [F.conv2d(x.to(dtype), kernel, padding=1, groups=channels) for kernel in kernels]


def march(
    source: Tensor, u: Tensor, v: Tensor, along_x: Tensor, along_y: Tensor, initial: Tensor | None, previous: Tensor | None,
    num_steps: int, dt: float, dx: float, dy: float, boundary: str,
) -> Tensor:  # fmt: skip
    """Computes `advect_diffuse` for checked arguments; velocities and diffusivities are four-dimensional."""
    dtype = accumulation_dtype(source)
    weights = stencil_weights(u, v, along_x, along_y, dt, dx, dy, boundary, (source.shape[2], source.shape[3]))
    before_weight, now_weight, right_weight, left_weight, below_weight, above_weight, source_weight = weights
    before = (source if previous is None else previous).to(dtype)
    now = (source if initial is None else initial).to(dtype)
    added = source_weight * source.to(dtype)
    for _ in range(num_steps):
        right, left = neighbours(now, _X, boundary)
        below, above = neighbours(now, _Y, boundary)
        later = before_weight * before + now_weight * now + added
        later = later + right_weight * right + left_weight * left + below_weight * below + above_weight * above
        before, now = now, later
    return now.to(source.dtype)


def stencil_weights(
    u: Tensor, v: Tensor, along_x: Tensor, along_y: Tensor,
    dt: float, dx: float, dy: float, boundary: str, size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Weights of the values in a step: the one before, the one now, right, left, below, above, and the source.

    Velocities and diffusivities are four-dimensional and broadcast to the field, whose height and width is `size`; so do
    the weights.
    """
    ax, ay = u * (dt / dx), v * (dt / dy)
    bx, by = along_x * (2 * dt / dx**2), along_y * (2 * dt / dy**2)
    # A velocity that does not vary along its axis still has a divergence where the world outside is 0.
    u, v = u.expand(*u.shape[:3], size[1]), v.expand(*v.shape[:2], size[0], v.shape[3])
    right, left = neighbours(u, _X, boundary)
    below, above = neighbours(v, _Y, boundary)
    divergence = (right - left) * (dt / dx) + (below - above) * (dt / dy)  # 2 E
    scale = 1 / (1 + bx + by)
    return (
        (1 - bx - by) * scale, -divergence * scale,
        (bx - ax) * scale, (bx + ax) * scale, (by - ay) * scale, (by + ay) * scale,
        2 * dt * scale,
    )  # fmt: skip


def neighbours(field: Tensor, axis: int, boundary: str) -> tuple[Tensor, Tensor]:
    """Values one pixel further along an axis (-1: right, -2: below), and those one pixel back.

    Example:
        >>> after, before = neighbours(torch.tensor([1.0, 2.0, 3.0]), -1, "reflect")
        >>> after, before
        (tensor([2., 3., 2.]), tensor([2., 1., 2.]))
    """
    size = field.shape[axis]
    first, rest = field.narrow(axis, 0, 1), field.narrow(axis, 1, size - 1)
    last, others = field.narrow(axis, size - 1, 1), field.narrow(axis, 0, size - 1)
    if boundary == "periodic":
        after_last, before_first = first, last
    elif boundary == "replicate":
        after_last, before_first = last, first
    elif boundary == "reflect":
        after_last, before_first = field.narrow(axis, size - 2, 1), field.narrow(axis, 1, 1)
    else:
        after_last, before_first = torch.zeros_like(last), torch.zeros_like(first)
    return torch.cat((rest, after_last), dim=axis), torch.cat((before_first, others), dim=axis)


def as_field(value: Coefficient, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a coefficient to a four-dimensional tensor that broadcasts to `like`, on its device."""
    tensor = torch.as_tensor(value, dtype=dtype, device=like.device)
    return tensor.reshape((1,) * (4 - tensor.dim()) + tensor.shape)


def check_advect_diffuse(
    source: Tensor,
    coefficients: Mapping[str, Coefficient],
    initial: Tensor | None,
    previous: Tensor | None,
    num_steps: int,
    dt: float,
    dx: float,
    dy: float,
    boundary: str,
    *,
    values: bool = True,
) -> None:
    """Checks that the arguments of `advect_diffuse` fit together, else raises `ValueError`.

    Args:
        source: as there; so are the others.
        coefficients: by their names.
        initial: as there.
        previous: as there.
        num_steps: as there.
        dt: as there.
        dx: as there.
        dy: as there.
        boundary: as there.
        values: checks the values of diffusivities that are tensors too, which waits for their device.
    """
    check_grid(num_steps, dt, dx, dy, boundary)
    if source.dim() != 4 or min(source.shape[2:]) < 1 or not source.is_floating_point():
        raise ValueError(
            f"the field must be floating-point numbers [batch, channels, height, width] of at least 1 pixel, got "
            f"{source.dtype} {list(source.shape)}"
        )
    if boundary == "reflect" and min(source.shape[2:]) < 2:
        raise ValueError(
            f"boundary 'reflect' needs at least 2 pixels along each axis, got {source.shape[2]} x {source.shape[3]}; "
            "'replicate' and 'periodic' take any size"
        )
    for name, field in (("initial", initial), ("previous", previous)):
        if field is not None and field.shape != source.shape:
            raise ValueError(f"{name} is {list(field.shape)}, the source {list(source.shape)}; they must be equal")
    tracing = torch.compiler.is_compiling() or source.is_meta
    for name, value in coefficients.items():
        if isinstance(value, Tensor):
            shape = value.shape
            fits = len(shape) <= 4 and all(
                n in (1, m) for n, m in zip(reversed(shape), reversed(source.shape), strict=False)
            )
            if not fits:
                raise ValueError(
                    f"{name} is {list(shape)}, which does not broadcast to the field, {list(source.shape)}"
                )
            if tracing or not values or value.numel() == 0:
                continue
        if not name.startswith("diffusivity"):
            continue
        # A plain number is compared as it is, which the compiler can follow.
        lowest = float(value.detach().min()) if isinstance(value, Tensor) else value
        if not lowest >= 0:
            raise ValueError(f"{name} must not be negative, got {lowest:.4g}: the problem would be ill-posed")


def check_formed(source: Tensor, formed: Tensor, uses: Sequence[int]) -> None:
    """Checks that `advect_diffuse_formed` can make its coefficients from the source, else raises `ValueError`."""
    check_table(source, formed, 11)
    if len(uses) != 4 or not all(-1 <= use < len(formed) for use in uses):
        raise ValueError(f"uses must be four numbers from -1 to {len(formed) - 1}, got {list(uses)}")


def check_table(x: Tensor, table: Tensor, rows: int) -> None:
    """Checks that images and the table of depthwise convolutions fit each other, else raises `ValueError`."""
    if x.dim() != 4 or min(x.shape[2:]) < 1 or table.dim() != 3 or table.shape[1:] != (rows, x.shape[1]):
        raise ValueError(
            f"images [batch, channels, height, width] and numbers [kernels, {rows}, channels] do not fit each other, or there "
            f"are no pixels: "
            f"{list(x.shape)} and {list(table.shape)}"
        )


def check_grid(num_steps: int, dt: float, dx: float, dy: float, boundary: str) -> None:
    """Checks that steps and distances are positive and the boundary is known, else raises `ValueError`."""
    if num_steps < 0:
        raise ValueError(f"num_steps must be 0 or more, got {num_steps}")
    if not all(0 < number < float("inf") for number in (dt, dx, dy)):
        raise ValueError(f"dt, dx and dy must be positive numbers, got {dt}, {dx}, {dy}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"no boundary {boundary!r}; known: {', '.join(BOUNDARIES)}")


def courant(
    velocity_x: Coefficient, velocity_y: Coefficient, dt: float = 0.2, dx: float = 1.0, dy: float = 1.0
) -> float:
    """The largest |u| dt/dx + |v| dt/dy: how many pixels a step carries features. Leap-frog needs it to be at most 1.

    Args:
        velocity_x: u, a number or a tensor.
        velocity_y: v, likewise; together they broadcast.
        dt: length of a step in time.
        dx: distance of pixels along the width.
        dy: distance of pixels along the height.
    Example:
        >>> round(courant(3.0, -4.0, dt=0.2), 6)
        1.4
    """
    u, v = (torch.as_tensor(velocity).detach().abs() for velocity in (velocity_x, velocity_y))
    numbers = u * (dt / dx) + v * (dt / dy)
    return float(numbers.max()) if numbers.numel() else 0.0


def limit_velocity(
    velocity_x: Float[Tensor, "..."],
    velocity_y: Float[Tensor, "..."],
    limit: float,
    *,
    dt: float = 0.2,
    dx: float = 1.0,
    dy: float = 1.0,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Shortens velocities wherever their Courant number exceeds a limit, keeping their direction.

    Args:
        velocity_x: u.
        velocity_y: v; both broadcast together.
        limit: the largest |u| dt/dx + |v| dt/dy allowed, positive.
        dt: length of a step in time.
        dx: distance of pixels along the width.
        dy: distance of pixels along the height.
    Returns:
        u and v, as they were where the limit holds; in float32 where they are of lower precision, so that rounding does
        not pass the limit.
    Example:
        >>> limit_velocity(torch.tensor([1.0, 8.0]), torch.tensor([1.0, 2.0]), 0.5)
        (tensor([1., 2.]), tensor([1.0000, 0.5000]))
    """
    u, v = (velocity.to(accumulation_dtype(velocity)) for velocity in (velocity_x, velocity_y))
    numbers = u.abs() * (dt / dx) + v.abs() * (dt / dy)
    shrink = limit / numbers.clamp(min=limit)
    return u * shrink, v * shrink


def perona_malik(
    h: Float[Tensor, "batch channels height width"], contrast: float = 2.0, *, boundary: str = "periodic"
) -> Float[Tensor, "batch channels height width"]:
    """Edge-stopping diffusivity 1 / (1 + |grad h|^2 / contrast^2), in (0, 1]: large on plains, small across edges.

    The gradient is Sobel's, both components, each divided by 8 so that a ramp of slope s has a gradient of s a pixel.

    Args:
        h: the field.
        contrast: the gradient, per pixel, at which the diffusivity is 1/2; positive.
        boundary: one of `BOUNDARIES`.
    Raises:
        ValueError: the contrast is not positive, an unknown boundary, or `reflect` on an axis of one pixel.
    Cost: 8 multiply-adds a number.
    Source: Perona & Malik, Scale-space and edge detection using anisotropic diffusion, 1990, equation 8.
    Example:
        >>> ramp = 2 * torch.arange(5.0).expand(1, 1, 4, 5)
        >>> perona_malik(ramp, contrast=2.0, boundary="replicate")[0, 0, 1]
        tensor([0.8000, 0.5000, 0.5000, 0.5000, 0.8000])
    """
    if not contrast > 0:
        raise ValueError(f"contrast must be positive, got {contrast}")
    check_advect_diffuse(h, {}, None, None, 0, 1.0, 1.0, 1.0, boundary)
    squares = []
    field = h.to(accumulation_dtype(h))
    for axis, across in ((_X, _Y), (_Y, _X)):
        after, before = neighbours(field, axis, boundary)
        slope = after - before
        ahead, behind = neighbours(slope, across, boundary)
        squares.append(((ahead + 2 * slope + behind) / 8).square())
    return (1 / (1 + (squares[0] + squares[1]) / contrast**2)).to(h.dtype)
