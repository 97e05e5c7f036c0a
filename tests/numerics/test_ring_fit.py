import pytest
import torch

from pocketcnn.numerics.ring_fit import fit_ring, fit_windows
from pocketcnn.numerics.ring_index import WINDOW, code_count, ring_indices, window_indices


def distance(weights, scales, places, ring, gains):
    """What is minimised, written out: for each layer the squared distance in units of its mean square."""
    total = 0.0
    for weight, scale, (indices, signs), gain in zip(weights, scales, places, gains, strict=True):
        read = torch.stack([gain * scale * sign * ring[index] for index, sign in zip(indices, signs, strict=True)])
        total += float(((weight - read) ** 2).sum() / weight.square().mean())
    return total


def some(sizes, ring_size, scheme="random"):
    torch.manual_seed(sum(sizes) + ring_size)
    weights = [torch.randn(n, dtype=torch.float64) * (1 + k) for k, n in enumerate(sizes)]
    indices, signs = ring_indices(sizes, ring_size, seed=3, scheme=scheme)
    return weights, [1.0, 0.5, 2.0][: len(sizes)], list(zip(indices.split(sizes), signs.split(sizes), strict=True))


def solved(weights, scales, places, gains, ring_size):
    """The best ring for some gains, by the least squares of a dense matrix."""
    rows, wanted = [], []
    for weight, scale, (indices, signs), gain in zip(weights, scales, places, gains, strict=True):
        matrix = torch.zeros(len(weight), ring_size, dtype=torch.float64)
        matrix[torch.arange(len(weight)), indices] = gain * scale * signs
        rows.append(matrix / weight.square().mean().sqrt())
        wanted.append(weight / weight.square().mean().sqrt())
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)[:, None], driver="gelsd").solution[:, 0]


@pytest.mark.parametrize(("sizes", "ring_size"), [([30, 7, 12], 10), ([9], 20), ([40, 40], 1), ([25, 24, 6], 24)])
def test_ring_and_gains_are_a_least_squares_solution(sizes, ring_size):
    weights, scales, places = some(sizes, ring_size)
    ring, gains = fit_ring(weights, scales, places, ring_size, rounds=1)
    once = distance(weights, scales, places, ring, gains)
    ring, gains = fit_ring(weights, scales, places, ring_size, rounds=60)
    found = distance(weights, scales, places, ring, gains)
    assert found <= once + 1e-9
    best = distance(weights, scales, places, solved(weights, scales, places, gains, ring_size), gains)
    assert found == pytest.approx(best, rel=0.01, abs=1e-9)
    for number in range(len(gains)):
        for factor in (0.99, 1.01):
            other = gains.clone()
            other[number] *= factor
            assert distance(weights, scales, places, ring, other) > found


def test_kernels_that_lie_on_a_ring_are_found_again():
    _, scales, places = some([40, 25, 31], 20)
    truth, own = torch.randn(20, dtype=torch.float64), [2.0, 0.3, 1.0]
    weights = [
        gain * scale * signs * truth[indices] for gain, scale, (indices, signs) in zip(own, scales, places, strict=True)
    ]
    ring, gains = fit_ring(weights, scales, places, 20, std=0.1, rounds=400)
    assert float(ring.square().mean()) == pytest.approx(0.01)
    assert distance(weights, scales, places, ring, gains) < 1e-6


def test_layers_of_zeros_and_places_never_read_do_no_harm():
    weights, scales, places = some([8, 6], 30)
    ring, gains = fit_ring([weights[0], torch.zeros_like(weights[1])], scales, places, 30)
    assert torch.isfinite(ring).all()
    assert torch.isfinite(gains).all()
    unread = torch.ones(30, dtype=torch.bool)
    unread[torch.cat([indices for indices, _ in places])] = False
    assert unread.any()
    assert (ring[unread] == 0).all()


def nearest(row, ring):
    """The best window by looking at every one: its distance."""
    every = [[ring[(start + k) % len(ring)] for k in range(len(row))] for start in range(len(ring))]
    return min(float(((row - s * torch.stack(window)) ** 2).sum()) for window in every for s in (1, -1))


@pytest.mark.parametrize("ring_size", [1, 5, 23, 60])
def test_every_window_takes_nearly_the_nearest_code(ring_size):
    """Codes are nearest on the ring before its last mean, which still moves it a little; hence the slack."""
    torch.manual_seed(0)
    truth = torch.randn(ring_size, dtype=torch.float64)
    sizes = [45, 20]
    codes = torch.randint(0, 256, (sum(map(code_count, sizes)), 2), dtype=torch.uint8)
    parts = codes.split(list(map(code_count, sizes)))
    weights = []
    for part, size in zip(parts, sizes, strict=True):
        indices, signs = window_indices(part, ring_size, size)
        weights.append(truth[indices] * signs)
    found = fit_windows(weights, ring_size, rounds=12).split(list(map(code_count, sizes)))
    places = [window_indices(part, ring_size, size) for part, size in zip(found, sizes, strict=True)]
    ring, gains = fit_ring(weights, [1.0, 1.0], places, ring_size, rounds=50)
    for weight, (indices, signs), gain in zip(weights, places, gains, strict=True):
        read = gain * signs * ring[indices]
        for row, got in zip(weight.split(WINDOW), read.split(WINDOW), strict=True):
            assert float((row - got).square().sum()) <= nearest(row, gain * ring) + 0.3 * float(row.square().sum())


def test_chosen_windows_come_nearer_than_drawn_ones():
    torch.manual_seed(0)
    weights = [torch.randn(16 * 9), torch.randn(50)]
    sizes = [len(w) for w in weights]
    drawn = ring_indices(sizes, 60, seed=0, scheme="windows")
    drawn = list(zip(drawn[0].split(sizes), drawn[1].split(sizes), strict=True))
    codes = fit_windows(weights, 60).split(list(map(code_count, sizes)))
    chosen = [window_indices(part, 60, size) for part, size in zip(codes, sizes, strict=True)]
    far, near = (
        distance(weights, [1.0, 1.0], places, *fit_ring(weights, [1.0, 1.0], places, 60)) for places in (drawn, chosen)
    )
    assert near < 0.6 * far
