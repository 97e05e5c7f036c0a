"""Slow, obvious forms of the papers' formulas, with loops over single numbers. No code in src uses them.

The loops run over lists, since reading a number off a tensor takes a hundred times as long.
"""

import math

import torch
from torch import Tensor


def _tap(x: list, b: int, c: int, row: int, column: int) -> float:
    """Value of a pixel; 0 outside the image."""
    plane = x[b][c]
    return plane[row][column] if 0 <= row < len(plane) and 0 <= column < len(plane[0]) else 0.0


def involution2d(x, kernels, kernel_size, stride, padding, dilation) -> Tensor:
    batch, channels = x.shape[:2]
    groups, height, width = kernels.shape[1], *kernels.shape[3:]
    y = torch.zeros(batch, channels, height, width, dtype=x.dtype)
    pixels, taps = x.tolist(), kernels.tolist()
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    total = 0.0
                    for u in range(kernel_size[0]):
                        for v in range(kernel_size[1]):
                            row = i * stride[0] - padding[0] + u * dilation[0]
                            column = j * stride[1] - padding[1] + v * dilation[1]
                            tap = taps[b][c * groups // channels][u * kernel_size[1] + v][i][j]
                            total += tap * _tap(pixels, b, c, row, column)
                    y[b, c, i, j] = total
    return y


def conv2d(x, weight, stride, padding, dilation, groups) -> Tensor:
    batch, out, inner = x.shape[0], weight.shape[0], weight.shape[1]
    k = weight.shape[2:]
    size = [(x.shape[2 + a] + 2 * padding[a] - dilation[a] * (k[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    y = torch.zeros(batch, out, *size, dtype=x.dtype)
    pixels, kernels = x.tolist(), weight.tolist()
    for b in range(batch):
        for o in range(out):
            first = o // (out // groups) * inner
            for i in range(size[0]):
                for j in range(size[1]):
                    total = 0.0
                    for c in range(inner):
                        for u in range(k[0]):
                            for v in range(k[1]):
                                row = i * stride[0] - padding[0] + u * dilation[0]
                                column = j * stride[1] - padding[1] + v * dilation[1]
                                total += kernels[o][c][u][v] * _tap(pixels, b, first + c, row, column)
                    y[b, o, i, j] = total
    return y


def condconv2d(x, routing_weights, experts, bias, stride, padding, dilation, groups) -> Tensor:
    """Mixes outputs instead of kernels: every expert convolves every image, then the outputs are mixed."""
    total = 0
    for e in range(experts.shape[0]):
        y = conv2d(x, experts[e], stride, padding, dilation, groups)
        if bias is not None:
            y = y + bias[e][None, :, None, None]
        total = total + routing_weights[:, e, None, None, None] * y
    return total


def ring_kernel(values, indices, signs, scale) -> Tensor:
    return torch.stack([values[int(i)] * int(s) * scale for i, s in zip(indices, signs, strict=True)])


def advect_diffuse(source, u, v, along_x, along_y, initial, previous, num_steps, dt, dx, dy, boundary) -> Tensor:
    """Applies the scheme's formula pixel by pixel; all fields are tensors of the source's shape."""

    def at(field, b, c, y, x):
        place = []
        for i, n in zip((y, x), size, strict=True):
            if not 0 <= i < n and boundary == "zero":
                return 0.0
            i = i % n if boundary == "periodic" else i
            i = abs(i) if boundary == "reflect" and i < 0 else i
            i = 2 * (n - 1) - i if boundary == "reflect" and i >= n else i
            place.append(min(max(i, 0), n - 1))
        return field[b][c][place[0]][place[1]]

    size = source.shape[2:]
    source, u, v, along_x, along_y = (field.tolist() for field in (source, u, v, along_x, along_y))
    before, now = previous.clone(), initial.clone()
    for _ in range(num_steps):
        later = torch.empty_like(now)
        before, now = before.tolist(), now.tolist()
        for b in range(later.shape[0]):
            for c in range(later.shape[1]):
                for y in range(later.shape[2]):
                    for x in range(later.shape[3]):
                        ax, ay = at(u, b, c, y, x) * dt / dx, at(v, b, c, y, x) * dt / dy
                        bx, by = at(along_x, b, c, y, x) * dt / dx**2, at(along_y, b, c, y, x) * dt / dy**2
                        du_dx = (at(u, b, c, y, x + 1) - at(u, b, c, y, x - 1)) / (2 * dx)
                        dv_dy = (at(v, b, c, y + 1, x) - at(v, b, c, y - 1, x)) / (2 * dy)
                        e = dt * (du_dx + dv_dy)
                        right = (1 - 2 * bx - 2 * by) * at(before, b, c, y, x) - 2 * e * at(now, b, c, y, x)
                        right += 2 * dt * at(source, b, c, y, x)
                        right += (-ax + 2 * bx) * at(now, b, c, y, x + 1) + (ax + 2 * bx) * at(now, b, c, y, x - 1)
                        right += (-ay + 2 * by) * at(now, b, c, y + 1, x) + (ay + 2 * by) * at(now, b, c, y - 1, x)
                        later[b, c, y, x] = right / (1 + 2 * bx + 2 * by)
        before, now = torch.tensor(now, dtype=later.dtype).view_as(later), later
    return now


def fourier_magnitudes(image: Tensor) -> list[float]:
    """Magnitudes of each channel's orthonormal two-dimensional Fourier transform, without the mean, as sums."""
    found = []
    channels, height, width = image.shape
    for c in range(channels):
        for u in range(height):
            for v in range(width):
                total = 0j
                for i in range(height):
                    for j in range(width):
                        angle = 2 * math.pi * (u * i / height + v * j / width)
                        total += image[c, i, j].item() * complex(math.cos(angle), -math.sin(angle))
                if u or v:
                    found.append(abs(total) / math.sqrt(height * width))
    return found
