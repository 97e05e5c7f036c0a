import io
import json
import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pocketcnn.cli import main
from pocketcnn.data import decode, load, open_stream, tables
from pocketcnn.data.columns import Asked
from pocketcnn.data.decode import Reading
from pocketcnn.data.found import Tally
from pocketcnn.data.sources import HubDataSet
from pocketcnn.data.tables import check_hub_file, split_files
from pocketcnn.errors import BadData, BadImage, PocketError

SECRET = 77


def png(grey, size=(4, 4)):
    out = io.BytesIO()
    Image.fromarray(np.full(size, grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


def write(path, cells, labels=None, rows=4, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [i % 2 for i in range(len(cells))] if labels is None else labels
    pq.write_table(pa.table({"image": cells, "label": labels, **columns}), path, row_group_size=rows)


def greys(split):
    return sorted(split.images[:, 0, 0, 0].tolist())


CELLS = {  # as pandas, polars, Spark and pyarrow write images
    "struct of bytes and path": lambda content: pa.array([{"bytes": c, "path": "a.png"} for c in content]),
    "struct of path and bytes": lambda content: pa.array(
        [{"path": None, "bytes": c} for c in content], pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())])
    ),
    "struct of bytes": lambda content: pa.array([{"bytes": c} for c in content]),
    "bytes": lambda content: pa.array(content, pa.binary()),
    "large bytes": lambda content: pa.array(content, pa.large_binary()),
    "views": lambda content: pa.array(content, pa.binary_view()),
    "lists of bytes": lambda content: pa.array([list(c) for c in content], pa.list_(pa.uint8())),
    "dictionary": lambda content: pa.array(content, pa.binary()).dictionary_encode(),
    "bytes of one length": lambda content: pa.array(
        [c.ljust(99, b"\0") for c in content], pa.binary(99)
    ),  # what follows an image's end is not read
}  # fmt: skip


@pytest.mark.parametrize("kind", CELLS)
def test_images_as_they_are_written(tmp_path, kind):
    content = [png(10 * i) for i in range(12)]
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", CELLS[kind](content))
    data = load(tmp_path)
    assert greys(data.test) == [10 * i for i in range(12)]
    assert torch.equal(data.test.images[:, 0, 0, 0] // 10 % 2, data.test.labels)
    streamed = open_stream(tmp_path, image_size=4, channels=1)
    images, labels = next(streamed.test.in_order(12))
    assert torch.equal(images, data.test.images)
    assert torch.equal(labels, data.test.labels)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (pa.array([[[0, 9], [9, 0]]] * 12), r"no column of images; .* images are encoded files \(PNG, JPEG, \.\.\.\) as bytes"),
        (pa.array([[1, 2, 300]] * 12), "no column of images"),
        (pa.array(["iVBORw0KGgo="] * 12), r"row 0, a text taken as a path \(iVBORw0KGgo=\): cannot be decoded .*No such file"),
        (pa.array([1] * 12), "no column of images"),
        (pa.array([b""] * 12), "row 0: cannot be decoded"),
        (pa.array([None] * 12, pa.binary()), "row 0: cannot be decoded .there is no image in the row"),
        (pa.array([{"bytes": None, "path": None}] * 12, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), "no image in"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(tmp_path, cells, message):
    write(tmp_path / "train.parquet", cells)
    with pytest.raises(BadData, match=message):
        load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A folder with an image, and links and files around it that no table may lead to."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(png(200))
    (root / "images" / "link.png").symlink_to("a.png")
    (tmp_path / "secret.png").write_bytes(png(SECRET))
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "away").symlink_to(tmp_path)
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.png")
    return root


def table_with(root, path, place="train.parquet"):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png(10 * i), "path": None} for i in range(12)] + [{"bytes": None, "path": path}]
    write(root / place, pa.array(cells, kind))


@pytest.mark.parametrize(
    "path",
    ["images/a.png", "./images/../images/a.png", "images/link.png", "{root}/images/a.png", "away/set/images/a.png"],
)
def test_paths_inside_the_folder_are_read(folder, path):
    table_with(folder, path.format(root=folder))
    assert greys(load(folder).train)[-1] == 200 or greys(load(folder).test)[-1] == 200
    write(folder / "test.parquet", pa.array([png(9)] * 4))
    with pytest.raises(BadData, match=r"train\.parquet row 12 \(.*\): the row has a path and no bytes"):
        list(open_stream(folder, image_size=4, validation=0.2, seed=1).train.in_order(99))


def test_paths_from_the_table_s_folder_are_read(folder):
    table_with(folder, "a.png", "images/train.parquet")
    assert 200 in greys(load(folder).train) + greys(load(folder).validation) + greys(load(folder).test)
    (folder / "a.png").write_bytes(png(100))
    with pytest.raises(BadData, match=r"row 12 \(a\.png\): its path leads to several files, .*; keep one of them"):
        load(folder)


OUTSIDE = [
    "{out}/secret.png", "file://{out}/secret.png", "FILE:///{out}/secret.png", "http://127.0.0.1:{port}/a.png",
    "s3://bucket/a.png", "zip://a.png::http://127.0.0.1:{port}/a.zip", "simplecache::http://127.0.0.1:{port}/a.png",
    "/dev/zero", "/dev/stdin", "/proc/self/mem", "../secret.png", "images/../../secret.png", "out.png", "away/secret.png",
    "gone.png", "loop.png", "hf://datasets/a/b@main/x.png", "{out}", "..", "/",
]  # fmt: skip
NOWHERE = [
    "~/secret.png",
    "~",
    "a\0.png",
    "no.png",
    "x" * 5000,
    "pipe.png",
    "images",
    ".",
    "file:secret.png",
    "\udcff\n.png",
]


@pytest.mark.parametrize("path", OUTSIDE + NOWHERE[:-1])
def test_paths_that_lead_out_are_refused_and_nothing_is_opened(folder, path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        decode.os, "open", lambda path, *_, open=os.open, **__: opened.append(path) or open(path, *_, **__)
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        given = path.format(out=folder.parent, port=server.getsockname()[1])
        table_with(folder, given)
        outside = path in OUTSIDE
        with pytest.raises(BadData if outside else BadImage, match=r"train\.parquet row 12 \(") as found:
            load(folder)
        if outside:
            with pytest.raises(BadData, match="only bytes in the table and files in the data's own folder are read"):
                load(folder, skip_bad_images=True)
        else:
            assert load(folder, skip_bad_images=True).skipped == 1
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 700
    assert not [path for path in opened if str(path).endswith((".png", "zero", "mem", "stdin")) and Path(path).exists()]


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("hf://datasets/a/b@0123/x.png", True),
        ("hf://datasets/A/b/x.png", True),
        ("zip://cat/1.png::hf://datasets/a/b@0123/x.zip", True),
        ("hf://datasets/a/bc@0123/x.png", False),
        ("hf://datasets/a/b@0123/../../c/d/x.png", False),
        ("hf://buckets/a/b/x.png", False),
        ("zip://cat/1.png::http://a/b.zip", False),
        ("file:///etc/passwd::hf://datasets/a/b@0/x", False),
        ("/etc/passwd", False),
        ("https://huggingface.co/datasets/a/b/x.png", False),
    ],
)
def test_addresses_of_a_hub_data_set(address, allowed):
    if allowed:
        check_hub_file(address, "t", home="hf://datasets/a/b")
        return
    with pytest.raises(BadData, match=r"t: .* lies outside of the data set's repository"):
        check_hub_file(address, "t", home="hf://datasets/a/b")


def test_hub_data_sets_read_their_own_files_by_the_same_rules(tmp_path):
    """A folder replaces the repository: its shards number the classes in other orders, which its package overlooks."""
    grey = {"day": 200, "night": 10}
    orders = {
        "train-00000-of-00002": ["day", "night"],
        "train-00001-of-00002": ["night", "day"],
        "test-00000-of-00001": ["night", "day"],
    }
    for place, order in orders.items():
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": order}}
        cells = pa.array([{"bytes": png(grey[name]), "path": None} for name in order * 4])
        table = pa.table({"image": cells, "label": [0, 1] * 4})
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "data" / f"{place}.parquet")
    decoded = HubDataSet(str(tmp_path), home=str(tmp_path)).decode(Reading())
    assert decoded.classes == ("day", "night")
    for split in (decoded.train, decoded.test):
        assert [grey[decoded.classes[label]] for label in split.labels.tolist()] == split.images[:, 0, 0, 0].tolist()
    with pytest.raises(BadData, match="lies outside of the data set's repository"):
        HubDataSet(str(tmp_path)).decode(Reading())
    with pytest.raises(BadData, match="no column is called 'x'"):
        HubDataSet(str(tmp_path), Asked(label="x"), home=str(tmp_path)).decode(Reading())


SPLITS = [  # names of files, and what they are read as, or the error
    (["train.parquet", "test.parquet"], {"train": 1, "test": 1}),
    (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/val-0.parquet"], {"train": 2, "validation": 1}),
    (["train/a.parquet", "train/b.parquet", "eval/a.parquet"], {"train": 2, "test": 1}),
    (["seg_train/0.parquet", "TestData/0.parquet", "dev.PARQUET"], {"train": 1, "test": 1, "validation": 1}),
    (["train.parquet/part-00000-x.snappy.parquet", "train.parquet/_temporary/0/part.parquet"], {"train": 1}),
    (["a.parquet", "b.parquet"], {"train": 2}),
    (["train.parquet", "test.parquet", "extra.parquet"], {"train": 1, "test": 1}),
    (["test.parquet"], {"test": 1}),
    (["train/test.parquet"], "its path tells two splits, test and train; rename"),
    (["train-00000-of-00001-1a.parquet", "train-00000-of-00001-2b.parquet"], "are both shard 0 of 1 of the train split, as of two"),
    (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], "are called the same, as of two data sets; give"),
    (["plain/train/0.parquet", "grey/train/0.parquet", "plain/test/0.parquet"], "are called the same, as of two data sets"),
    (["train/year=2024/0.parquet", "train/year=2025/0.parquet"], {"train": 2}),
    (["a/train-0.parquet", "b/train-1.parquet"], {"train": 2}),
    (["train.parquet", "test.parquet", "evaluation.parquet"], "files are called both test and evaluation"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), SPLITS)
def test_splits_are_told_by_names(tmp_path, names, expected):
    files = [tmp_path / name for name in names]
    if isinstance(expected, str):
        with pytest.raises(BadData, match=expected):
            split_files(tmp_path, files, Tally(tmp_path))
        return
    tally = Tally(tmp_path)
    found, _ = split_files(tmp_path, files, tally)
    assert {split: len(own) for split, own in found.items()} == expected
    left_out = sum(entry.count for entry in tally.all())
    assert left_out + sum(expected.values()) == len(names), "what is not read is counted"


def test_what_is_read_and_left_out_is_told(tmp_path, caplog):
    tmp_path /= "set"
    for name in ("train-00000-of-00002", "test", "extra", ".hidden"):
        write(tmp_path / f"{name}.parquet", pa.array([png(9)] * 8))
    write(tmp_path / "test-empty.parquet", pa.array([], pa.binary()), [])
    (tmp_path / "loading.py").write_text("raise SystemExit")
    data = load(tmp_path)
    again = load(tmp_path)
    assert data.found == again.found, "the cache keeps what was found"
    assert [(part.split, part.images) for part in data.found.parts] == [("train", 8), ("test", 8)]
    assert data.found.columns == ("images: 'image'", "labels: 'label' (numbers)")
    assert "only 1 of 2 shards of the train split are there" in data.found.doubts
    reasons = {entry.reason: entry.count for entry in data.found.left_out}
    assert reasons["parquet files whose path tells no split"] == 1
    assert "files without rows are left out" in caplog.text


def test_shards_must_agree_on_their_columns(tmp_path):
    write(tmp_path / "train-0.parquet", pa.array([png(9)] * 8))
    pq.write_table(pa.table({"picture": [png(9)] * 8, "label": [0, 1] * 4}), tmp_path / "train-1.parquet")
    with pytest.raises(
        BadData, match=r"train-1\.parquet: its image column is 'picture', but that of \S*train-0\.parquet is 'image'"
    ):
        load(tmp_path)
    pq.write_table(pa.table({"image": [png(9)] * 8, "target": [0, 1] * 4}), tmp_path / "train-1.parquet")
    with pytest.raises(BadData, match=r"train-1\.parquet: its label column is 'target', but that of"):
        open_stream(tmp_path, image_size=4)


def test_columns_can_be_chosen(tmp_path):
    for split in ("train", "test"):
        write(
            tmp_path / f"{split}.parquet",
            pa.array([png(9)] * 12),
            mask=[png(200)] * 12,
            coarse_label=["x", "y", "z"] * 4,
        )
    for read in (
        lambda **how: load(tmp_path, **how),
        lambda **how: open_stream(tmp_path, image_size=4, channels=1, **how),
    ):
        with pytest.raises(BadData, match="several columns may be the labels: 'label', 'coarse_label'"):
            read(image_column="image")
        one = read(image_column="image", label_column="label")
        other = read(image_column="mask", label_column="coarse_label")
        assert (one.classes, other.classes) == (("0", "1"), ("x", "y", "z"))
        assert [int(next(data.test.in_order(1))[0][0, 0, 0, 0]) for data in (one, other)] == [9, 200]
        assert one.fingerprint != other.fingerprint
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "a.png").write_bytes(png(9))
    for name in ("digits", tmp_path / "photos"):
        with pytest.raises(BadData, match="no columns; leave out --image-column and --label-column"):
            load(name, label_column="label")


def test_the_command_line_names_the_remedy_and_takes_it(tmp_path, capsys):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", pa.array([png(9)] * 12), coarse_label=["x", "y", "z"] * 4)
    for words, code in (
        ([], 2),
        (["--label-column", "coarse_label"], 0),
        (["--label-column", "label", "--pixel-bits", "12"], 0),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["data", str(tmp_path), *words])
        out, err = capsys.readouterr()
        assert ended.value.code == code
        assert ("choose one with --label-column" in err) == (code == 2)
        assert ("column: labels: " in out) == (code == 0)


def test_unlabelled_and_partly_labelled_splits(tmp_path):
    write(tmp_path / "train.parquet", pa.array([png(9)] * 12))
    write(tmp_path / "test.parquet", pa.array([png(9)] * 4), [-1] * 4)
    assert "left out, as their images have no labels: test" in load(tmp_path).found.notes
    write(tmp_path / "validation.parquet", pa.array([png(7)] * 4))
    data = load(tmp_path)
    assert greys(data.test) == [7] * 4
    assert any("the validation split takes its place" in note for note in data.found.notes)
    write(tmp_path / "test.parquet", pa.array([png(8)] * 4), [0, 1, -1, 1])
    for read in (lambda: load(tmp_path), lambda: open_stream(tmp_path, image_size=4)):
        with pytest.raises(BadData, match=r"1 of 4 test images have no label \(none, or -1\); remove their rows"):
            read()
    write(tmp_path / "test.parquet", pa.array([png(8)] * 4))
    for data in (load(tmp_path), open_stream(tmp_path, image_size=4, channels=1)):
        assert [int(next(part.in_order(4))[0][0, 0, 0, 0]) for part in (data.validation, data.test)] == [7, 8]
        assert len(data.train) == 12


def test_a_split_of_bad_images_is_refused(tmp_path):
    write(tmp_path / "train.parquet", pa.array([png(9)] * 12))
    write(tmp_path / "test.parquet", pa.array([b"junk"] * 4))
    with pytest.raises(BadData, match="none of 4 images can be decoded in the split 'test'"):
        load(tmp_path, skip_bad_images=True)
    write(tmp_path / "test.parquet", pa.array([png(9)] * 4))
    write(tmp_path / "train.parquet", pa.array([png(9), b"junk"] * 6))
    with pytest.raises(BadData, match="no training images of class '1'"):
        load(tmp_path, skip_bad_images=True)


def test_a_damaged_shard_is_named(tmp_path):
    for number in range(3):
        write(tmp_path / f"train-{number:05}-of-00003.parquet", pa.array([png(9)] * 8))
    write(tmp_path / "test.parquet", pa.array([png(9)] * 8))
    middle = tmp_path / "train-00001-of-00003.parquet"
    content = middle.read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], b"x" * len(content), content[:4] + b"\xff" * 200 + content[204:]):
        middle.write_bytes(damaged)
        for read in (lambda: load(tmp_path), lambda: list(open_stream(tmp_path, image_size=4).train.in_order(9))):
            with pytest.raises(BadData, match=r"train-00001-of-00003\.parquet|no files of 0 bytes"):
                read()


def test_tables_that_unpack_to_far_more_are_refused(tmp_path, monkeypatch):
    cells = pa.array([bytes(1_000_000)] * 8)
    table = pa.table({"image": cells, "label": [0, 1] * 4})
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr(tables, "_MOST_UNPACKED", 1_000_000)
    for read in (load, lambda root: open_stream(root, image_size=4)):
        with pytest.raises(
            BadData, match=r"train\.parquet: 8,000,\d+ bytes, packed into \S+, are no encoded images; write"
        ):
            read(tmp_path)


def test_changed_bytes_of_a_table_end_well(tmp_path):
    """Whatever is changed, the table is read or refused in one line."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", pa.array([{"bytes": png(20 * i), "path": None} for i in range(12)]))
    path = tmp_path / "train.parquet"
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refusals = []
    for trial in range(60):
        changed = content.copy()
        first = 0 if trial % 2 else len(content) - 900  # the description of the columns and their places
        changed[random.integers(first, len(content), 3)] = random.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        for read in (load, lambda root: list(open_stream(root, image_size=4).train.in_order(9))):
            try:
                read(tmp_path)
            except PocketError as error:
                refusals.append(str(error))
    assert len(refusals) > 30
    assert not any("\n" in refusal for refusal in refusals)
