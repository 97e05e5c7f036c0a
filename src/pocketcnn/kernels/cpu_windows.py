"""The search of `numerics.nearest_windows`, compiled by numba for the CPU: exact, without a table of all distances.

Rows lie side by side, `LANES` of them, so that one vector instruction compares one window with all of them. Each thread of
torch's number has a share of the rows.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pocketcnn.kernels._routines import launcher
from pocketcnn.numerics.ring_index import WINDOW

_LANES = 32  # rows at once


@launcher
def _search(rows, windows, halves, best, chosen):
    """Fills `best` and `chosen` [blocks, lanes] with the highest |row . window| - |window|^2 / 2, and the window it is of."""
    for block in range(rows.shape[0]):
        row, top, place = rows[block], best[block], chosen[block]
        for number in range(windows.shape[0]):
            w = windows[number]
            w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
            half = halves[number]
            for lane in range(_LANES):
                dot = (
                    row[0, lane] * w0 + row[1, lane] * w1 + row[2, lane] * w2 + row[3, lane] * w3 + row[4, lane] * w4
                    + row[5, lane] * w5 + row[6, lane] * w6 + row[7, lane] * w7 + row[8, lane] * w8
                )  # fmt: skip
                score = abs(dot) - half
                place[lane] = number if score > top[lane] else place[lane]
                top[lane] = max(score, top[lane])


def nearest_windows(rows: Tensor, windows: Tensor) -> Tensor:
    """Computes `pocketcnn.numerics.nearest_windows` for float32 on the CPU."""
    count = len(rows)
    blocks = -(-count // _LANES)
    padded = torch.zeros(blocks * _LANES, WINDOW)
    padded[:count] = rows
    turned = padded.view(blocks, _LANES, WINDOW).transpose(1, 2).contiguous().numpy()
    book = windows.float().contiguous()
    halves = (book.square().sum(1) / 2).numpy()
    best = np.full((blocks, _LANES), -np.inf, dtype=np.float32)
    chosen = np.zeros((blocks, _LANES), dtype=np.int32)
    parts = max(1, min(torch.get_num_threads(), blocks))
    bounds = [blocks * part // parts for part in range(parts + 1)]
    shares = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    with ThreadPoolExecutor(parts) as pool:
        work = [pool.submit(_search, turned[own], book.numpy(), halves, best[own], chosen[own]) for own in shares]
        for one in work:
            one.result()
    return torch.from_numpy(chosen.ravel()[:count]).long()
