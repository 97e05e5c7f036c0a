import io
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketcnn.data import load, open_stream
from pocketcnn.data.columns import Asked, Column, chosen, columns_of, meaning_of
from pocketcnn.errors import BadData, BrokenFile

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = {"day": 250, "dusk": 170, "dawn": 90, "night": 10}  # each class has a grey of its own


def png(grey):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


def described(**features):
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def class_label(names):
    return {"_type": "ClassLabel", "names": list(names)}


def labels_in(kind, order, words):
    """A column of labels in some encoding, and what Hugging Face's metadata say of it."""
    numbers = [order.index(word) for word in words]
    match kind:
        case "names":
            return pa.array(numbers, pa.int64()), described(label=class_label(order))
        case "names in bytes":
            return pa.array(numbers, pa.uint8()), described(label=class_label(order))
        case "texts":
            return pa.array(words), {}
        case "large texts":
            return pa.array(words, pa.large_string()), {}
        case "views":
            return pa.array(words, pa.string_view()), {}
        case "categories":  # of pandas
            return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int8()), pa.array(list(order))), {}
        case "decomposed":
            return pa.array([unicodedata.normalize("NFD", word) for word in words]), {}
        case "numbers":
            return pa.array([list(CLASSES).index(word) for word in words], pa.int64()), {}
        case "small numbers":
            return pa.array([list(CLASSES).index(word) for word in words], pa.uint8()), {}


def write(path, kind, order, words, rows=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels, metadata = labels_in(kind, order, words)
    images = pa.array([{"bytes": png(CLASSES[word]), "path": None} for word in words], IMAGE)
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows)


def mislabelled(split, classes):
    """Images whose grey is not that of the class they have."""
    images, labels = next(iter(split.in_order(1000)))
    names = [list(CLASSES)[int(name)] if name.isdigit() else name for name in classes]
    expected = torch.tensor([CLASSES[names[label]] for label in labels.tolist()], dtype=torch.float32)
    return int((abs(images.float().mean((1, 2, 3)) - expected) > 1).sum())


NAMED = ("names", "names in bytes", "texts", "large texts", "views", "categories", "decomposed")
NUMBERED = ("numbers", "small numbers")
files = st.fixed_dictionaries({"kind": st.sampled_from(NAMED + NUMBERED), "order": st.permutations(list(CLASSES))})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    classes=st.lists(st.sampled_from(list(CLASSES)), min_size=2, max_size=4, unique=True),
    shards=st.lists(files, min_size=4, max_size=4),
    kinds=st.sampled_from(["any", "named", "numbered"]),
    less=st.booleans(),
)
def test_labels_are_matched_by_name(tmp_path_factory, classes, shards, kinds, less):
    """Whatever a file numbers or writes its names like, an image has the class it shows; or the files are refused."""
    root = tmp_path_factory.mktemp("set")
    places = ("train-00000-of-00002", "train-00001-of-00002", "test", "validation")
    used = set()
    for place, shard in zip(places, shards, strict=True):
        own = classes[:-1] if less and not place.startswith("train") else classes
        allowed = {"any": NAMED + NUMBERED, "named": NAMED, "numbered": NUMBERED}[kinds]
        kind = allowed[(NAMED + NUMBERED).index(shard["kind"]) % len(allowed)]
        used.add("numbers" if kind in NUMBERED else "names")
        order = [name for name in shard["order"] if name in own]
        write(root / f"{place}.parquet", kind, order, own * 2)
    for read in (lambda: load(root, cache=root / "cache"), lambda: open_stream(root, image_size=4)):
        if len(used) == 2:
            with pytest.raises(
                BadData, match=r"labels are .* in .* but .* in .*; write all files with one kind of label"
            ):
                read()
            continue
        data = read()
        assert len(data.classes) == len(classes)
        for split in (data.train, data.validation, data.test):
            assert mislabelled(split, data.classes) == 0


def test_classes_are_those_of_training_in_their_order(tmp_path):
    write(tmp_path / "train.parquet", "names", ["night", "day"], ["day", "night"] * 6)
    write(tmp_path / "test.parquet", "names", ["dusk", "day", "night"], ["day", "night"])
    assert load(tmp_path).classes == ("night", "day")
    assert open_stream(tmp_path, image_size=4, validation=0.2).classes == ("night", "day")
    write(tmp_path / "test.parquet", "names", ["dusk", "day", "night"], ["day", "dusk"])
    for read in (lambda: load(tmp_path), lambda: open_stream(tmp_path, image_size=4)):
        with pytest.raises(BadData, match="label 'dusk' is not one of the training classes night, day"):
            read()


def test_digits_as_names_are_numbers(tmp_path):
    """The one case in which numbers and names are the same for certain."""
    for place, kind in (("train", "names"), ("test", "numbers")):
        labels = pa.array([0, 1, 2] * 4, pa.int64())
        metadata = described(label=class_label("012")) if kind == "names" else {}
        images = pa.array([{"bytes": png(20 * i), "path": None} for i in [0, 1, 2] * 4], IMAGE)
        pq.write_table(
            pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata),
            tmp_path / f"{place}.parquet",
        )
    data = load(tmp_path)
    assert data.classes == ("0", "1", "2")
    assert torch.equal(data.test.images.float().mean((1, 2, 3)), 20.0 * data.test.labels)


@pytest.mark.parametrize(
    ("labels", "metadata", "message"),
    [
        (pa.array([0.0, 1.0] * 4), {}, r"train.parquet row 0: label 0\.0 is neither a whole number nor a text"),
        (pa.array([1.0, float("nan")] * 4), {}, r"label 1\.0 is neither a whole number nor a text"),
        (pa.array([[0, 1], [1, 0]] * 4), {}, r"label \[0, 1\] is neither a whole number nor a text"),
        (pa.array([b"a", b"b"] * 4), {}, "label b'a' is neither"),
        (pa.array([{"a": 1}] * 8), {}, "label {'a': 1} is neither"),
        (pa.array([0, None] * 4), {}, r"4 of 8 training images have no label \(none, or -1\)"),
        (pa.array([0, -1] * 4), {}, "4 of 8 training images have no label"),
        (pa.array(["a", None] * 4), {}, "4 of 8 training images have no label"),
        (pa.array([None] * 8), {}, "8 of 8 training images have no label"),
        (
            pa.array([0, 2] * 4),
            described(label=class_label("ab")),
            "row 1: label 2, but its column 'label' has the names of 2",
        ),
        (pa.array([0, -2] * 4), described(label=class_label("ab")), "row 1: label -2, but"),
        (
            pa.array([0, 1] * 4),
            described(label=class_label(["é", "e\u0301"])),
            "column 'label': two of its classes are called 'é'; give each class a name of its own",
        ),
        (pa.array([0, 1] * 4), described(label={"_type": "ClassLabel", "names": [1, 2]}), "column 'label': Expected"),
        (pa.array([0, 1] * 4), {b"huggingface": b"{'"}, "Hugging Face's metadata: not readable as JSON"),
        (pa.array([0, 1] * 4), {b"huggingface": b"[]"}, "Hugging Face's metadata: Expected"),
    ],
)
def test_labels_that_are_refused(tmp_path, labels, metadata, message):
    images = pa.array([{"bytes": png(9), "path": None}] * 8, IMAGE)
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet", row_group_size=2)
    for read in (lambda: load(tmp_path), lambda: open_stream(tmp_path, image_size=4)):
        with pytest.raises((BadData, BrokenFile), match=message):
            read()


def test_truths_are_labels(tmp_path):
    images = pa.array([{"bytes": png(200 * i), "path": None} for i in [0, 1] * 6], IMAGE)
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": images, "is_target": pa.array([False, True] * 6)}), tmp_path / f"{split}.parquet"
        )
    data = load(tmp_path)
    assert data.classes == ("False", "True")
    assert torch.equal(data.test.images[:, 0, 0, 0] > 0, data.test.labels == 1)


COLUMNS = [  # fields of a table, features of Hugging Face, and the image and label column, or the error
    ({"image": IMAGE, "label": pa.int64()}, {}, ("image", "label")),
    ({"img": IMAGE, "fine_label": pa.int64()}, {}, ("img", "fine_label")),
    ({"x": IMAGE, "y": pa.int64()}, {"x": {"_type": "Image"}, "y": class_label("ab")}, ("x", "y")),
    ({"photo": pa.large_binary(), "class": pa.string()}, {}, ("photo", "class")),
    ({"content": pa.binary(), "ImageLabel": pa.string()}, {}, ("content", "ImageLabel")),
    ({"id": pa.binary(16), "image_bytes": pa.binary(), "label": pa.int8()}, {}, ("image_bytes", "label")),
    ({"pixels": pa.list_(pa.uint8()), "label": pa.int8()}, {}, ("pixels", "label")),
    ({"image_id": pa.string(), "image": IMAGE, "label": pa.int8()}, {}, ("image", "label")),
    ({"file_name": pa.string(), "label": pa.int8()}, {}, ("file_name", "label")),
    ({"image": pa.struct([("bytes", pa.large_binary())]), "label": pa.dictionary(pa.int8(), pa.string())}, {}, ("image", "label")),
    ({"image": IMAGE, "mask": IMAGE, "label": pa.int64()}, {}, "several columns may be the images: 'image', 'mask'; choose one with --image-column"),
    ({"image": IMAGE, "depth": pa.struct([("bytes", pa.binary())]), "label": pa.int64()}, {}, "several columns may be the images"),
    ({"thumbnail": IMAGE, "image": pa.binary(), "label": pa.int64()}, {}, "several columns may be the images: 'thumbnail', 'image'"),
    ({"a": pa.binary(), "b": pa.binary(), "label": pa.int64()}, {}, "several columns may be the images: 'a', 'b'"),
    ({"image": IMAGE, "label": IMAGE, "target": pa.int64()}, {}, "several columns may be the images: 'image', 'label'"),
    ({"img": IMAGE, "fine_label": pa.int64(), "coarse_label": pa.int64()}, {}, "several columns may be the labels: 'fine_label', 'coarse_label'; choose one with --label-column .label_column=."),
    ({"img": IMAGE, "label": pa.int64(), "kind": pa.int64()}, {"kind": class_label("ab")}, "several columns may be the labels: 'label', 'kind'"),
    ({"img": IMAGE, "species": pa.string()}, {}, "labels are missing: none of its columns img, species is called .* --label-column"),
    ({"image": pa.list_(pa.list_(pa.uint8())), "label": pa.int64()}, {}, "no column of images; its columns are image, label; .*--image-column"),
    ({"image": pa.list_(IMAGE), "label": pa.int64()}, {}, "no column of images"),
    ({"label": pa.int64()}, {}, "no column of images"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "features", "expected"), COLUMNS)
def test_columns_are_chosen_by_name_and_type_or_refused(fields, features, expected):
    schema = pa.schema(list(fields.items()), metadata=described(**features))
    columns = columns_of(schema, "t.parquet")
    if isinstance(expected, tuple):
        assert tuple(column.name for column in chosen(columns, "t.parquet", Asked())) == expected
        return
    with pytest.raises(BadData, match=f"t.parquet: {expected}"):
        chosen(columns, "t.parquet", Asked())


def test_columns_that_are_asked_for():
    schema = pa.schema({"image": IMAGE, "mask": IMAGE, "label": pa.int64(), "species": pa.string()}.items())
    columns = columns_of(schema, "t")

    def names(**asked):
        return tuple(column.name for column in chosen(columns, "t", Asked(**asked)))

    assert names(image="mask") == ("mask", "label")
    assert names(image="image", label="species") == ("image", "species")
    with pytest.raises(
        BadData, match="t: no column is called 'x'; its columns are image, mask, label, species; give one as image col"
    ):
        names(image="x")
    with pytest.raises(BadData, match="t: column 'image' cannot hold both images and labels"):
        names(image="image", label="image")
    twice = columns_of(pa.schema([("image", IMAGE), ("label", pa.int64()), ("label", pa.int64())]), "t")
    with pytest.raises(BadData, match="t: several columns may be the labels: 'label', 'label'"):
        chosen(twice, "t", Asked())
    with pytest.raises(BadData, match="t: several columns are called 'label'"):
        chosen(twice, "t", Asked(label="label"))


def test_names_that_differ_only_in_case_are_told(tmp_path):
    images = pa.array([{"bytes": png(9), "path": None}] * 12, IMAGE)
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": images, "label": ["cat", "Cat "] * 6}), tmp_path / f"{split}.parquet", row_group_size=4
        )
    for data in (load(tmp_path), open_stream(tmp_path, image_size=4)):
        assert data.found.doubts == ("classes 'Cat ' and 'cat' differ only in case or blanks; they are taken as two",)


def test_numbers_and_truths_are_not_mixed():
    with pytest.raises(BadData, match=r"labels are numbers in a, but truths in b, so that"):
        meaning_of([("a", Column("label", "numbers"))], [("b", Column("label", "truths"))])
