import numpy as np
import pytest
import torch

from pocketcnn.data.figures import _CHUNK, _DRAWS, JOINTS, LIMBS, _Draws, _paint, figures


def capsule(start, end, radius, colour=(1.0, 1.0, 1.0)):
    return [torch.tensor([[list(part)]]) for part in (start, end, (radius,), colour)]


def distance(x, y, start, end):
    """Distance of a point to a line, by its definition."""
    (ax, ay), (bx, by) = start, end
    squared = (bx - ax) ** 2 + (by - ay) ** 2
    share = min(1.0, max(0.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / squared)) if squared else 0.0
    return ((x - ax - share * (bx - ax)) ** 2 + (y - ay - share * (by - ay)) ** 2) ** 0.5


@pytest.mark.parametrize(
    ("start", "end"), [((3.0, 4.0), (14.0, 9.0)), ((12.0, 15.0), (12.0, 2.0)), ((6.5, 7.0), (6.5, 7.0))]
)
def test_a_capsule_covers_what_lies_within_its_radius(start, end):
    painted = _paint(capsule(start, end, 2.2), torch.zeros(1, 3, 18, 18))
    wanted = [[min(1.0, max(0.0, 2.7 - distance(x, y, start, end))) for x in range(18)] for y in range(18)]
    torch.testing.assert_close(painted[0, 1], torch.tensor(wanted), rtol=0, atol=1e-5)


def test_the_last_capsule_lies_on_top():
    below, above = (capsule((2.0, 8.0), (13.0, 8.0), 3.0, colour) for colour in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    canvas = torch.full((1, 3, 16, 16), 0.5)
    painted = _paint([torch.cat(parts, 1) for parts in zip(below, above, strict=True)], canvas)[0]
    torch.testing.assert_close(painted[:, 8, 8], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(painted[:, 0, 0], torch.tensor([0.5, 0.5, 0.5]))


@pytest.mark.parametrize("size", [16, 32, 48])
def test_joints_lie_inside(size):
    images, joints = figures(300, size=size, seed=5)
    assert images.shape == (300, 3, size, size)
    assert images.dtype == torch.uint8
    assert joints.shape == (300, len(JOINTS), 2)
    assert joints.min() >= 2
    assert joints.max() <= size - 3


def test_the_seed_is_all_there_is_and_the_first_images_do_not_depend_on_how_many_follow():
    images, joints = figures(2 * _CHUNK + 3, seed=7)
    torch.manual_seed(1)
    for count in (1, _CHUNK + 5):
        again, places = figures(count, seed=7)
        assert torch.equal(again, images[:count])
        assert torch.equal(places, joints[:count])
    other, _ = figures(3, seed=8)
    far, _ = figures(3, seed=7 + (1 << 32))
    assert not torch.equal(other, images[:3])
    assert not torch.equal(far, images[:3])


def test_left_limbs_are_warm_and_right_limbs_cold():
    """Compares red with blue in the middle of forearms and shins, which are mostly uncovered."""
    images, joints = figures(400, seed=0)
    warmth = {}
    for side in ("left", "right"):
        values = []
        for ends in (("elbow", "hand"), ("knee", "foot")):
            a, b = (joints[:, JOINTS.index(f"{side}_{end}")] for end in ends)
            x, y = ((a + b) / 2).round().long().unbind(1)
            pixel = images[torch.arange(400), :, y, x].float()
            values.append(pixel[:, 0] - pixel[:, 2])
        warmth[side] = torch.cat(values)
    assert (warmth["left"] > 0).float().mean() > 0.85
    assert (warmth["right"] < 0).float().mean() > 0.85


def test_figures_are_seen_from_both_sides_and_fill_most_of_the_image():
    _, joints = figures(400, size=48, seed=0)
    to_the_right = joints[:, JOINTS.index("left_shoulder"), 0] > joints[:, JOINTS.index("right_shoulder"), 0]
    assert 0.4 < to_the_right.float().mean() < 0.6
    extent = (joints.amax(1) - joints.amin(1)).amax(1)
    assert 30 < extent.mean() < 43


def test_limbs_join_joints_and_every_joint_has_one():
    assert {end for limb in LIMBS for end in limb} == set(JOINTS)


def test_random_numbers_that_run_out_are_an_error():
    with pytest.raises(RuntimeError):
        _Draws(np.random.RandomState(0), 2).uniform(0, 1, _DRAWS + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=0, seed=0), "count must be at least 1 and size at least 16 pixels, got 0, 48"),
        (dict(count=1, size=8, seed=0), "got 1, 8"),
        (dict(count=1, seed=-1), r"seed must lie in \[0, 2\*\*64\), not -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        figures(**arguments)
