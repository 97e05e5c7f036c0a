import io
import math
import multiprocessing
import os
import signal
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from pocketcnn.data import stream
from pocketcnn.data.augment import random_crop
from pocketcnn.data.decode import Reading
from pocketcnn.data.shards import open_stream
from pocketcnn.data.stream import RowGroup, Stream
from pocketcnn.errors import BadData, BadImage, WorkerDied

WIDTH, HEIGHT, SIZE = 12, 10, 8


def plain(value):
    """An image of one colour, so that every crop identifies it."""
    return np.full((HEIGHT, WIDTH), value, dtype=np.uint8)


def shard(path, images, labels, rows, **features):
    """Writes a parquet file in row groups of `rows`; `images` are pixels or encoded bytes."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = []
    for pixels in images:
        buffer = io.BytesIO()
        if not isinstance(pixels, bytes):
            Image.fromarray(pixels).save(buffer, "PNG")
        cells.append({"bytes": pixels if isinstance(pixels, bytes) else buffer.getvalue(), "path": None})
    kinds = {"image": datasets.Image(), "label": features.get("label", datasets.ClassLabel(names=["ant", "bee"]))}
    columns = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=datasets.Features(kinds))
    columns.to_parquet(str(path), batch_size=rows)


def write(root, files=3, rows=36, group=12, bad=()):
    """Writes training files in which image i has colour i, and a test file of 10 images with colours 200 to 209."""
    for file in range(files):
        numbers = range(file * rows, (file + 1) * rows)
        images = [b"junk" if i in bad else plain(i) for i in numbers]
        shard(root / f"train-{file:05}-of-{files:05}.parquet", images, [i % 2 for i in numbers], group)
    shard(root / "test-00000-of-00001.parquet", [plain(i) for i in range(200, 210)], [i % 2 for i in range(10)], 4)
    return root


def groups_of(root):
    import pyarrow.parquet

    found = []
    for path in sorted(root.glob("train-*")):
        with pyarrow.parquet.ParquetFile(path) as file:
            row = 0
            for number in range(file.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                found.append(RowGroup(str(path), number, row, rows))
                row += rows
    return found


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """108 training images in 9 row groups of 12, in 3 files."""
    return write(tmp_path_factory.mktemp("stream") / "shards")


@pytest.fixture(scope="session")
def uneven(tmp_path_factory):
    """78 training images in row groups of 10, 10, 6, in 3 files."""
    return write(tmp_path_factory.mktemp("stream") / "uneven", rows=26, group=10)


def whole(root, workers=0, skip=False, **options):
    """All training images of a folder as one stream, in which an image's place is its colour."""
    groups = groups_of(root)
    labels = torch.arange(sum(group.rows for group in groups)) % 2
    return Stream(groups, labels, "image", Reading(SIZE, 1, skip), workers=workers, **options)


def colours(batches):
    return [images[:, 0, 0, 0].tolist() for images, _ in batches]


def flat(lists):
    return [value for values in lists for value in values]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_evaluated_once_and_in_order(uneven, workers):
    data = whole(uneven, workers)
    for world in (1, 2, 3):
        shares = [list(data.in_order(16, rank=rank, world=world)) for rank in range(world)]
        assert flat(flat(map(colours, shares))) == list(range(78))
        labels = torch.cat([labels for share in shares for _, labels in share])
        assert torch.equal(labels, data.labels)
        for share in shares:
            assert [len(labels) for _, labels in share[:-1]] == [16] * (len(share) - 1)
    images, labels = next(data.in_order(16))
    assert images.shape == (16, *data.image_shape)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_more_devices_than_images_get_nothing_or_one(folder):
    data = open_stream(folder, image_size=SIZE, channels=1)
    counts = [len(flat(colours(data.test.in_order(4, rank=rank, world=12)))) for rank in range(12)]
    assert sorted(counts) == [0, 0, *[1] * 10]
    data = open_stream(folder, image_size=SIZE, channels=1, workers=2)
    assert list(data.test.in_order(4, rank=counts.index(0), world=12)) == []


def test_an_epoch_takes_each_image_once_where_row_groups_divide_evenly(folder):
    data = whole(folder)  # 9 row groups: 3 for each of 3 devices, of 36 images, 6 batches of 6
    assert data.steps(6, world=3) == 6
    parts = [flat(colours(data.batches(6, seed=1, epoch=0, rank=rank, world=3))) for rank in range(3)]
    assert sorted(flat(parts)) == list(range(108))
    assert flat(parts) != list(range(108))
    for images, labels in data.batches(6, seed=1, epoch=0):
        assert torch.equal(labels, images[:, 0, 0, 0].long() % 2)


def test_rows_of_several_row_groups_are_mixed(folder):
    data = whole(folder)
    first = [flat(colours(islice(data.batches(6, seed=0, epoch=epoch), 4))) for epoch in range(3)]
    groups = [{colour // 12 for colour in half} for half in first]
    assert all(2 < len(found) <= 4 for found in groups), "24 images are half of a window of 4 row groups"
    assert len(set.union(*groups)) > 4, "each epoch begins with other row groups"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_device_with_fewer_rows_wraps_round(uneven, workers):
    """Devices have 4 or 5 of 9 row groups (workers 2 or 3), but all devices have the same number of steps."""
    data = whole(uneven, workers)
    wrapped = False
    for epoch in range(3):
        for rank in range(2):
            batches = colours(data.batches(5, seed=0, epoch=epoch, rank=rank, world=2))
            assert list(map(len, batches)) == [5] * 7  # 78 // (5 * 2)
            for worker in range(max(1, workers)):
                mine = flat(batches[worker :: max(1, workers)])
                counts = Counter(mine)
                order = np.random.default_rng(np.random.SeedSequence((0, epoch), spawn_key=(0,))).permutation(9)
                part = order[rank * max(1, workers) + worker :: 2 * max(1, workers)]
                rows = sum(data.groups[i].rows for i in part)
                assert max(counts.values()) <= math.ceil(len(mine) / rows)
                assert len(counts) == min(rows, len(mine))
                wrapped |= max(counts.values()) == 2
    assert wrapped
    # One device with a batch larger than the split: its one step begins the rows again.
    [batch] = colours(whole(uneven).batches(100, seed=0, epoch=0))
    assert sorted(Counter(batch).values()) == [1] * 56 + [2] * 22


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_step(uneven, workers):
    data = whole(uneven, workers)
    for rank in range(2):
        how = dict(seed=3, epoch=1, rank=rank, world=2)
        everything = list(data.batches(4, **how))
        assert len(everything) == 9
        for start in (1, 2, 5, 8, 9) if workers else range(10):
            tail = list(data.batches(4, start=start, **how))
            assert len(tail) == 9 - start
            for (images, labels), (expected, expected_labels) in zip(tail, everything[start:], strict=True):
                assert torch.equal(images, expected)
                assert torch.equal(labels, expected_labels)


def test_what_lies_before_is_not_read(folder, monkeypatch):
    data, read, decoded = whole(folder), [], []
    monkeypatch.setattr(
        stream, "_read", lambda group, column, read_=stream._read: read.append(group) or read_(group, column)
    )
    monkeypatch.setattr(
        stream, "decode_image", lambda raw, how, decode=stream.decode_image: decoded.append(raw) or decode(raw, how)
    )
    list(data.batches(12, seed=0, epoch=0, start=8))
    assert len(read) == 1, "windows have 4, 4 and 1 row groups, and step 8 is the last of 9"
    assert len(decoded) == 12


def test_order_and_crops_follow_from_seed_and_epoch(folder):
    data = whole(folder)

    def order(**key):
        return colours(data.batches(9, **{"seed": 0, "epoch": 0} | key))

    assert order() == order()
    assert len({str(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_crops_follow_from_the_image_alone(tmp_path):
    """An image's crop is the same in an epoch, whichever worker reads it, and another in the next epoch."""
    import datasets

    images = np.random.RandomState(0).randint(0, 256, (24, 20, 30, 3), dtype=np.uint8)
    shard(
        tmp_path / "train-00000-of-00001.parquet",
        list(images),
        list(range(24)),
        6,
        label=datasets.ClassLabel(num_classes=24),
    )
    groups = groups_of(tmp_path)

    def crops(workers=0, world=1, min_area=0.35, **key):
        data = Stream(groups, torch.arange(24), "image", Reading(SIZE, 3), workers=workers, min_area=min_area)
        found = {}
        for rank in range(world):
            for pixels, labels in data.batches(6, **{"seed": 0, "epoch": 0} | key, rank=rank, world=world):
                found |= dict(zip(labels.tolist(), pixels, strict=True))
        return found

    first = crops()
    assert len(first) == 24
    for other in (crops(workers=2), crops(world=4), crops(workers=2, world=2)):
        assert len(other) >= 12
        assert all(torch.equal(pixels, first[label]) for label, pixels in other.items())
    for other in (crops(epoch=1), crops(seed=1), crops(min_area=0.1)):
        assert not any(torch.equal(pixels, first[label]) for label, pixels in other.items())


def test_random_crops_have_the_shares_and_shapes_promised(monkeypatch):
    """The image is a ramp along x and one along y, so that a crop's values tell its place and size."""
    taken = []

    def keep(part, size, **_):
        taken.append(part[0])
        return torch.zeros(1, part.shape[1], *size, dtype=torch.uint8)

    monkeypatch.setattr(torch.nn.functional, "interpolate", keep)
    y, x = np.mgrid[:100, :100].astype(np.uint8)
    random = np.random.default_rng(0)
    for _ in range(400):
        assert random_crop(np.stack([x, y]), 8, 0.25, random).shape == (2, 8, 8)
    shares = np.array([part[0].numel() / 10_000 for part in taken])
    ratios = np.array([part.shape[2] / part.shape[1] for part in taken])
    assert 0.24 < shares.min() < 0.3
    assert 0.93 < shares.max() <= 1
    assert 0.72 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.36
    corners = np.array([part[:, 0, 0].tolist() for part in taken])
    assert (corners.max(0) > 30).all()
    assert (corners.min(0) == 0).all()
    for part in taken[:20]:
        left, top = part[:, 0, 0].tolist()
        assert torch.equal(
            part, torch.from_numpy(np.stack([x, y]))[:, top : top + part.shape[1], left : left + part.shape[2]]
        )


def test_a_crop_of_the_whole_is_a_resize_and_thin_images_can_be_cropped():
    class Whole:
        def uniform(self, low, high):
            return (low + high) / 2 if low < 0 else high

        def integers(self, count):
            return count - 1

    pixels = np.random.RandomState(0).randint(0, 256, (3, 9, 9), dtype=np.uint8)
    assert np.array_equal(random_crop(pixels, 9, 0.5, Whole()), pixels)
    assert random_crop(np.full((1, 1, 40), 7, np.uint8), 4, 0.5, np.random.default_rng(0)).tolist() == [[[7] * 4] * 4]


def test_open_stream(folder):
    data = open_stream(folder, image_size=SIZE, channels=1)
    assert data.classes == ("ant", "bee")
    assert (len(data.train), len(data.validation), len(data.test)) == (96, 12, 10), (
        "one of 9 row groups is more than a tenth"
    )
    train, held_out = (flat(colours(part.in_order(7))) for part in (data.train, data.validation))
    assert sorted(train + held_out) == list(range(108))
    assert len({colour // 12 for colour in held_out}) == 1
    assert torch.equal(data.train.labels, torch.tensor(train) % 2)
    assert flat(colours(data.test.in_order(7))) == list(range(200, 210))
    assert data.mean[0] == pytest.approx(np.mean(train) / 255, abs=1e-5)
    assert data.std[0] == pytest.approx(np.std(train) / 255, abs=1e-5)
    assert (data.augmentation.crop, data.augmentation.flip) == (0, True)
    other = open_stream(folder, image_size=SIZE, channels=1, seed=1, validation=0.5)
    assert (len(other.train), len(other.validation)) == (48, 60)
    assert other.fingerprint != data.fingerprint
    assert open_stream(folder, image_size=SIZE, channels=3).train.image_shape == (3, SIZE, SIZE)


def test_a_sample_is_spread_from_first_to_last(folder, monkeypatch):
    data = whole(folder)
    assert data.sample(1000).images[:, 0, 0, 0].tolist() == list(range(108))
    assert data.sample(10).images[:, 0, 0, 0].tolist() == [int(107 * i / 9) for i in range(10)]
    assert data.sample(10).images.shape == (10, *data.image_shape)
    monkeypatch.setattr(stream, "_SAMPLED", 3)
    few = data.sample(9)
    assert sorted({colour // 12 for colour in few.images[:, 0, 0, 0].tolist()}) == [0, 4, 8]
    assert torch.equal(few.labels, few.images[:, 0, 0, 0].long() % 2)


def test_the_fingerprint_tells_when_a_file_changed(tmp_path):
    root = write(tmp_path / "set", files=2)
    before = open_stream(root, image_size=SIZE).fingerprint
    assert open_stream(root, image_size=SIZE).fingerprint == before
    assert open_stream(root, image_size=SIZE, min_area=0.5).fingerprint != before
    shard(root / "train-00001-of-00002.parquet", [plain(i) for i in range(30)], [i % 2 for i in range(30)], 12)
    assert open_stream(root, image_size=SIZE).fingerprint != before


def test_too_few_row_groups(folder, tmp_path):
    data = whole(folder, workers=5)
    with pytest.raises(
        BadData, match=r"9 row groups for 2 devices with 5 workers each.* use fewer workers or devices, or"
    ):
        data.batches(4, seed=0, epoch=0, world=2)
    root = write(tmp_path / "one", files=1, group=36)
    with pytest.raises(BadData, match=r"one: a validation split of 0\.1 takes whole row groups.*smaller row groups"):
        open_stream(root, image_size=SIZE)
    with pytest.raises(BadData, match="none of 9 would remain"):
        open_stream(folder, image_size=SIZE, validation=0.95)


def _open_with_seeds(root):
    for seed in range(20):  # some seed sets the third of three row groups aside
        open_stream(root, image_size=SIZE, seed=seed)


def test_folders_that_cannot_be_streamed(tmp_path, folder):
    root = write(tmp_path / "set", files=1)
    (root / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(BadData, match=r"streaming needs a test split with labels; found train; add files called test-"):
        open_stream(root, image_size=SIZE)
    shard(root / "test-00000-of-00001.parquet", [plain(0)] * 2, [-1, -1], 2)
    with pytest.raises(BadData, match=r"found train, test; add files"):
        open_stream(root, image_size=SIZE)
    shard(root / "validation-00000-of-00001.parquet", [plain(0)] * 3, [0, 1, 0], 2)
    assert len(open_stream(root, image_size=SIZE).test) == 3, (
        "a test split without labels, as that of ImageNet, is replaced by the validation split"
    )
    train = root / "train-00000-of-00001.parquet"
    shard(train, [plain(0)] * 30, [0] * 20 + [1] * 10, 10)
    with pytest.raises(BadData, match="all images of class 'bee' are in the row groups set aside for validation; mix"):
        _open_with_seeds(root)
    shard(train, [plain(0)] * 30, [0] * 30, 10)
    with pytest.raises(BadData, match="no training images of class 'bee'"):
        open_stream(root, image_size=SIZE)
    shard(train, [plain(0)] * 30, [0, -1, 1] * 10, 10)
    with pytest.raises(BadData, match="set: 10 of 30 training images have no label"):
        open_stream(root, image_size=SIZE)
    train.write_bytes(train.read_bytes()[:-200])
    with pytest.raises(BadData, match=r"train-00000-of-00001\.parquet: not readable as parquet"):
        open_stream(root, image_size=SIZE)
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    Image.fromarray(plain(0)).save(tmp_path / "classes" / "cat" / "a.png")
    with pytest.raises(BadData, match=r"streaming reads a folder of parquet files; load\(\)"):
        open_stream(tmp_path / "classes", image_size=SIZE)


def test_labels_may_be_words(tmp_path):
    import datasets

    words = ["wren", "auk", "owl"] * 8
    text = datasets.Value("string")
    shard(tmp_path / "set" / "train.parquet", [plain(i) for i in range(24)], words, 6, label=text)
    shard(tmp_path / "set" / "test.parquet", [plain(i) for i in range(3)], words[:3], 6, label=text)
    data = open_stream(tmp_path / "set", image_size=SIZE)
    assert data.classes == ("auk", "owl", "wren")
    assert data.test.labels.tolist() == [2, 0, 1]
    shard(tmp_path / "set" / "test.parquet", [plain(i) for i in range(3)], ["emu"] * 3, 6, label=text)
    with pytest.raises(BadData, match="label 'emu' is not one of the training classes auk, owl, wren"):
        open_stream(tmp_path / "set", image_size=SIZE)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_or_skipped(tmp_path, workers, caplog):
    root = write(tmp_path / "set", files=2, rows=24, bad=(29, 30))
    data = whole(root, workers)
    for batches in (data.batches(6, seed=0, epoch=0), data.in_order(6)):
        with pytest.raises(BadImage, match=r"^\S*train-00001-of-00002\.parquet row [56]: cannot be decoded .*\)$"):
            list(batches)
    data = whole(root, workers, skip=True)
    good = sorted({*range(48)} - {29, 30})
    assert flat(colours(data.in_order(6))) == good
    assert "2 images skipped in this pass; the first: " in caplog.text
    assert "train-00001-of-00002.parquet row 5" in caplog.text
    caplog.clear()
    everything = list(data.batches(6, seed=0, epoch=0))
    batches = colours(everything)
    assert list(map(len, batches)) == [6] * 8
    assert set(flat(batches)) == set(good)
    assert all(len(set(batch)) == 6 for batch in batches), "other images fill up the batches"
    assert "2 images skipped in this pass" in caplog.text
    for start in (1, 4, 7):
        assert colours(data.batches(6, seed=0, epoch=0, start=start)) == batches[start:]


def test_only_bad_images(tmp_path):
    root = write(tmp_path / "set", files=1, rows=12, group=6, bad=range(12))
    data = whole(root, skip=True)
    assert list(data.in_order(4)) == []
    with pytest.raises(BadImage, match=r"none of a worker's images can be decoded; the last: .*row"):
        next(data.batches(4, seed=0, epoch=0))
    with pytest.raises(BadImage, match="none of 12 images of this split can be decoded"):
        data.sample(20)


def test_a_file_that_is_cut_short_later_is_named(tmp_path):
    data = whole(write(tmp_path / "set", files=1))
    path = tmp_path / "set" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        BadData, match=r"train-00000-of-00001\.parquet rows 0 to 11: damaged or cut short .*copy it again"
    ):
        next(data.in_order(4))


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patched decoder must reach the workers")
def test_a_worker_that_dies_is_named_with_what_it_read(uneven, monkeypatch):
    def fatal(raw, reading, decode=stream.decode_image):
        if "train-00001-of-00003.parquet row 13" in raw.where:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(raw, reading)

    monkeypatch.setattr(stream, "decode_image", fatal)
    waiting = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.1,))  # seconds between looks for the dead, instead of five
    handler = signal.getsignal(signal.SIGCHLD)
    batches = whole(uneven, workers=2).in_order(13)  # 78 images in 6 batches; image 39 is in the fourth
    with pytest.raises(
        WorkerDied,
        match=r"^worker 1 of 2 was killed by SIGKILL reading rows 10 to 19 of \S*train-00001-of-00003\.parquet, "
        "row 13 last; look at that file; if memory .*fewer workers",
    ):
        list(batches)
    assert WorkerDied.exit_code == 1
    assert signal.getsignal(signal.SIGCHLD) is handler, "the death of another process must not raise elsewhere"
    assert not multiprocessing.active_children()


def test_workers_leave_when_their_batches_are_no_longer_wanted(folder):
    state = torch.get_rng_state()
    batches = whole(folder, workers=2).batches(6, seed=0, epoch=0)
    next(batches)
    next(batches)  # both workers have begun now
    [first, second] = multiprocessing.active_children()
    os.kill(first.pid, signal.SIGTERM)  # a scheduler asks all processes to stop, but the main one decides when
    next(batches)
    next(batches)
    batches.close()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert torch.equal(torch.get_rng_state(), state), "workers draw nothing from the training's random generator"


def test_arguments_are_checked(folder):
    for wrong, message in (
        ({"validation": 1.0}, "validation must be a fraction"),
        ({"image_size": 0}, "image_size must be at least 1 pixel, not 0"),
        ({"channels": 2}, "channels must be 1 or 3, not 2"),
        ({"workers": -1}, "workers must be 0 or more processes, not -1"),
        ({"min_area": 0.0}, "min_area must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            open_stream(folder, **{"image_size": 8} | wrong)
    data = whole(folder)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.batches(0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="got rank 2 of world 2"):
        data.in_order(4, rank=2, world=2)
    with pytest.raises(ValueError, match="a stream needs image_size and channels"):
        Stream(data.groups, data.labels, "image", Reading())
