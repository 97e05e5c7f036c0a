"""The search of `numerics.nearest_windows`, compiled by numba for the CPU: exact, without a table of all distances.

Rows lie side by side, `LANES` of them, so that one vector instruction compares one window with all of them. Each thread of
torch's number has a share of the rows.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.kernels._routines import launcher

_LANES = 32  # rows at once
_TAPS = 9  # weights of a window at once; zeros fill up the last of a window


@launcher
def _search(rows, windows, halves, best, chosen):
    """Fills `best` and `chosen` [blocks, lanes] with the highest |row . window| - |window|^2 / 2, and the window it is of."""
    dots = np.empty(_LANES, np.float32)
    for block in range(rows.shape[0]):
        top, place = best[block], chosen[block]
        for number in range(windows.shape[0]):
            dots[:] = 0
            for part in range(windows.shape[1]):
                row, w = rows[block, part], windows[number, part]
                w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
                for lane in range(_LANES):
                    dots[lane] += (
                        row[0, lane] * w0 + row[1, lane] * w1 + row[2, lane] * w2 + row[3, lane] * w3 + row[4, lane] * w4
                        + row[5, lane] * w5 + row[6, lane] * w6 + row[7, lane] * w7 + row[8, lane] * w8
                    )  # fmt: skip
            half = halves[number]
            for lane in range(_LANES):
                score = abs(dots[lane]) - half
                place[lane] = number if score > top[lane] else place[lane]
                top[lane] = max(score, top[lane])


def nearest_windows(rows: Tensor, windows: Tensor) -> Tensor:
    """Computes `pocketcnn.numerics.nearest_windows` for float32 on the CPU."""
    (count, width), blocks = rows.shape, -(-len(rows) // _LANES)
    taken, more = -(-width // _TAPS), -width % _TAPS
    padded = F.pad(rows, (0, more, 0, blocks * _LANES - count))
    turned = padded.view(blocks, _LANES, taken, _TAPS).permute(0, 2, 3, 1).contiguous().numpy()
    book = F.pad(windows, (0, more)).view(len(windows), taken, _TAPS).contiguous().numpy()
    halves = (windows.square().sum(1) / 2).numpy()
    best = np.full((blocks, _LANES), -np.inf, dtype=np.float32)
    chosen = np.zeros((blocks, _LANES), dtype=np.int32)
    parts = max(1, min(torch.get_num_threads(), blocks))
    bounds = [blocks * part // parts for part in range(parts + 1)]
    shares = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    with ThreadPoolExecutor(parts) as pool:
        work = [pool.submit(_search, turned[own], book, halves, best[own], chosen[own]) for own in shares]
        for one in work:
            one.result()
    return torch.from_numpy(chosen.ravel()[:count]).long()
