"""Folders of images. Each image has a colour that tells its class and split, so labels are checked by content."""

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketcnn.cli import main as command_line
from pocketcnn.data import load, load_unlabelled, read_image
from pocketcnn.data.dividing import contradicting_images, shared_images
from pocketcnn.data.folders import find_source
from pocketcnn.data.found import printable
from pocketcnn.data.layout import kind_of, words_of
from pocketcnn.data.walk import image_files, image_suffixes, is_hidden
from pocketcnn.errors import BadData, BadImage

ROOT = Path(__file__).parents[2]


def _trials():
    source = importlib.util.spec_from_file_location("hostile_folders", ROOT / "benchmarks" / "hostile_folders.py")
    module = importlib.util.module_from_spec(source)
    sys.modules["hostile_folders"] = module
    source.loader.exec_module(module)
    return module


trials = _trials()
put, Layout = trials.put, trials.Layout


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def left_out(data):
    return {entry.reason: entry.count for entry in data.found.left_out}


def run(words):
    with pytest.raises(SystemExit) as left:
        command_line(words)
    return left.value.code


@pytest.fixture
def folder(tmp_path):
    """Empty folder; the cache lies beside it."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


layouts = st.builds(
    Layout,
    splits=st.integers(0, len(trials.SPLITS) - 1),
    wrapper=st.sampled_from(trials.WRAPPERS),
    classes=st.lists(st.sampled_from(trials.CLASSES), min_size=2, max_size=3, unique=True).map(tuple),
    suffixes=st.lists(st.sampled_from(sorted(trials.FORMATS)), min_size=1, max_size=3, unique=True).map(tuple),
    is_nested=st.booleans(),
    litter=st.lists(
        st.sampled_from(sorted(trials.LITTER.keys() - {"unlabelled split", "deep folders"})), max_size=6, unique=True
    ).map(tuple),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(layout=layouts)
def test_each_image_gets_its_class_and_split(layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout") / "data"
    folder.mkdir()
    layout.write(folder)
    layout.check(load(folder))


@pytest.mark.parametrize("name", sorted(trials.LITTER))
def test_what_lies_about_is_left_out(name, tmp_path):
    layout = Layout(splits=4, litter=(name,))
    (tmp_path / "data").mkdir()
    layout.write(tmp_path / "data")
    data = load(tmp_path / "data")
    layout.check(data)
    is_read = name in (*trials.MORE[:2], "folder like an image")
    assert is_read == (not left_out(data)), "what is left out is counted"


@pytest.mark.parametrize("name", sorted(trials.HOSTILE.keys() - {"broken parquet"}))
def test_other_layouts_are_refused_in_one_line(name, tmp_path):
    make, words = trials.HOSTILE[name]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    if words:
        with pytest.raises(trials.PocketError) as caught:
            load(tmp_path / "data")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert load(tmp_path / "data").classes == ("cat", "dog")


def test_the_drawn_trials_end_well(tmp_path):
    for name, make, opened in list(trials.folder_trials(seed=5, count=12))[:11:2]:
        error, _ = trials.try_folder(make, opened, _made(tmp_path / name.partition(":")[0]))
        assert error is None


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (word, "train")
            for word in ("train", "Training", "seg_train", "train_data", "TRAIN", "train2017", "trainset")
        ),
        *(
            (word, "train")
            for word in ("trainImages", "training-set", "my train", "trainval", "train_val", "Train (1)")
        ),
        *((word, "test") for word in ("test", "testing", "test set", "TestData", "test1", "seg_test", "01_test")),
        *((word, "validation") for word in ("val", "valid", "validation", "dev", "val_256", "ValidationSet")),
        *((word, "evaluation") for word in ("eval", "evaluation", "hold-out", "holdout")),
        *(
            (word, None)
            for word in (
                "trains",
                "cat",
                "test_train",
                "testament",
                "value",
                "devil",
                "",
                "\u8bad\u7ec3",
                "constrained",
            )
        ),
    ],
)
def test_the_name_of_a_folder_tells_a_split(name, kind):
    assert kind_of(name) == kind


def test_words_of_a_name():
    assert words_of("seg_Train2") == ["seg", "train"]
    assert words_of("testSet 3") == ["test", "set"]


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "._0.png", "__MACOSX", "THUMBS.DB", "Desktop.ini", "@eaDir", ".DS_Store"]
)
def test_hidden_names(name):
    assert is_hidden(name)
    assert not is_hidden(f"a{name}")


def test_every_format_that_pillow_decodes_is_read():
    known = image_suffixes()
    assert known >= {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".avif",
        ".jp2",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
    }
    assert not known & {".pdf", ".mpg", ".eps", ".ps", ".h5", ".grib", ".txt", ""}, (
        "stubs, films and programs are no images"
    )


def test_classes_may_look_like_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trials._tops("bus", "car", "train", "bus/more", "car/more", "train/more")(tmp_path / "bare")
    with pytest.raises(
        BadData, match=r"'train' is named like a split, but 'bus', 'car' beside are not; .*folder 'train'"
    ):
        load(tmp_path / "bare")
    (tmp_path / "inside").mkdir()
    (tmp_path / "bare").rename(tmp_path / "inside" / "train")
    assert load(tmp_path / "inside").classes == ("bus", "car", "train"), "the remedy of the message helps"
    assert "'train' in" in caplog.text
    trials._tops("valid", "invalid", "valid/b", "invalid/b")(tmp_path / "coins")
    with pytest.raises(BadData, match="'valid' is named like a split"):
        load(tmp_path / "coins")
    for classes in (("test_tube", "beaker"), ("test_positive", "test_negative"), ("dev", "designer")):
        Layout(classes=classes).write(folder := tmp_path / classes[0])
        assert load(folder).classes == tuple(sorted(classes))


def test_unlabelled_splits_are_left_out_by_name(folder, caplog):
    Layout(splits=1).write(folder)
    put(folder / "test" / "0.png", 3)
    put(folder / "single_prediction" / "a.png", 3)
    data = load(folder)
    Layout(splits=1).check(data)
    assert left_out(data) == {
        "images of 'test' without class folders": 1,
        "images of 'single_prediction' without class folders": 1,
    }
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("splits", [1, 2])
def test_an_empty_split_and_loose_images_are_named(folder, splits, caplog):
    Layout(splits=splits).write(folder)
    for place in (folder / "0.png", folder / "train" / "1.png"):
        put(place, 3)
    for empty in ("val", "documents"):
        (folder / empty).mkdir()
    data = load(folder)
    Layout(splits=splits).check(data)
    assert left_out(data) == {"images outside of a class folder": 2, "folders without images": 2}
    assert "folders without images: 2 (documents)" in caplog.text


def test_a_split_linked_to_another_is_named(folder, caplog):
    Layout(splits=2).write(folder)
    (folder / "val").symlink_to("test")
    data = load(folder)
    Layout(splits=2).check(data)
    assert "links to what is read already, or to a folder around it: 1 (val)" in caplog.text


def test_domains_with_the_same_classes_are_doubted(folder, caplog):
    for domain in ("photo", "sketch"):
        Layout().write(folder / domain)
    data = load(folder)
    assert data.classes == ("photo", "sketch")
    assert data.found.doubts == (
        f"'photo', 'sketch' in {folder}: taken as the classes, though each holds the same folders (cat, dog)",
    )
    assert data.found.doubts[0] in caplog.text


def test_a_class_without_images_is_refused_with_the_reason(folder):
    Layout(litter=("checkpoints",)).write(folder)
    for file in (folder / "cat").glob("*.png"):
        file.unlink()
    with pytest.raises(BadData, match=r"cat: no images of this class \(hidden or system entries: 1 \(cat/\.ipynb"):
        load(folder)


def test_hidden_entries_alone_are_no_warning(folder, caplog):
    caplog.set_level(logging.INFO)
    Layout(litter=("thumbs", "checkpoints", "texts")).write(folder)
    data = load(folder)
    assert left_out(data) == {"hidden or system entries": 2, "files with suffix .md": 1}
    [record] = [record for record in caplog.records if "left out" in record.message]
    assert record.levelname == "INFO"
    assert "hidden or system entries: 2 (cat/.ipynb_checkpoints)" in record.message


def test_an_own_validation_split_is_used_also_from_the_cache(folder, caplog):
    caplog.set_level(logging.INFO)
    Layout(splits=13).write(folder)
    first, again, other = load(folder), load(folder), load(folder, validation=0.5, seed=3)
    assert first.fingerprint == again.fingerprint == other.fingerprint
    assert first.found == again.found
    assert [(part.split, part.images) for part in again.found.parts] == [
        ("train", 12),
        ("validation", 12),
        ("test", 12),
    ]
    assert "its own validation split of 12 images is used; `validation` is not" in caplog.text


def test_what_was_left_out_is_not_cached(folder):
    Layout().write(folder)
    assert not left_out(load(folder))
    (folder / "cat" / "a.heic").write_bytes(b"x")
    assert left_out(load(folder)) == {"files with suffix .heic": 1}


def test_known_layouts_keep_their_key_in_the_cache(tmp_path):
    def listed(split, *classes):
        files = [(folder.name, file) for folder in classes for file in sorted(folder.rglob("*.png"))]
        return [
            [split, name, str(file.resolve()), (about := file.stat()).st_size, about.st_mtime_ns]
            for name, file in files
        ]

    Layout(is_nested=True).write(tmp_path / "plain")
    Layout(splits=3).write(tmp_path / "split")
    plain, split = find_source(str(tmp_path / "plain")), find_source(str(tmp_path / "split"))
    cat, dog = tmp_path / "plain" / "cat", tmp_path / "plain" / "dog"
    assert plain.fingerprint() == listed("train", cat, dog)
    test, train = ([tmp_path / "split" / name / pet for pet in ("cat", "dog")] for name in ("Testing", "Training"))
    assert split.fingerprint() == listed("testing", *test) + listed("training", *train)


def test_a_class_missing_in_the_test_split_is_fine(folder):
    Layout(splits=2, classes=("cat", "dog", "9")).write(folder)
    for file in (folder / "test" / "cat").iterdir():
        file.unlink()
    data = load(folder)
    assert data.classes == ("9", "cat", "dog")
    assert torch.bincount(data.test.labels, minlength=3).tolist() == [6, 0, 6]
    assert left_out(data) == {"folders without images": 1}


@pytest.mark.parametrize("place", ["/", "/proc", "/dev", "~"])
def test_a_whole_disk_or_home_is_refused(place):
    with pytest.raises(BadData, match="a whole disk, a home or a folder of the system"):
        load(os.path.expanduser(place))


@pytest.mark.parametrize("name", ["a\0b", "./" + "x" * 5000, "./\udcff"])
def test_names_that_no_folder_has(name):
    with pytest.raises(trials.PocketError):
        load(name)


def test_unlabelled_folders_are_walked_alike(tmp_path):
    Layout(litter=("checkpoints", "loop", "fifo", "linked files")).write(tmp_path / "data")
    data = load_unlabelled(
        tmp_path / "data",
        lambda x: torch.zeros(len(x), dtype=torch.int64),
        classes=("a", "b"),
        mean=(0.5,),
        std=(0.5,),
        input_size=(3, 16, 16),
    )
    assert len(data.train) + len(data.validation) + len(data.test) == 14
    assert len(left_out(data)) == 3
    files, found = image_files(tmp_path / "data")
    assert (len(files), files) == (14, sorted(files))
    assert found == data.found


def test_names_are_printed_on_one_line():
    assert printable("a\nb\x1b[31m\udcff\u202e") == "a\\nb\\x1b[31m\\udcff\\u202e"
    assert printable("caf\u00e9 \u732b \u0645\u06cc\u200c\u062e") == "caf\u00e9 \u732b \u0645\u06cc\u200c\u062e"


def test_images_in_two_splits_are_counted(folder, capsys):
    Layout(splits=13, litter=("thumbs", "other format")).write(folder)
    (folder / "test" / "cat" / "copy.png").write_bytes((folder / "train" / "cat" / "train3.png").read_bytes())
    (folder / "train" / "dog" / "copy.png").write_bytes((folder / "train" / "cat" / "train4.png").read_bytes())
    data = load(folder)
    assert shared_images(data.train, data.test) == 1
    assert contradicting_images(data.train, data.validation, data.test) == 1
    assert not shared_images(data.validation, data.test)
    assert run(["data", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"validation: 12 images from {folder / 'val'}" in said
    assert "left out: 1 files with suffix .heic (train/cat/0.heic)" in said
    assert "left out: 1 hidden or system entries (train/cat/Thumbs.db)" in said
    assert "warning: 1 of 13 test images equal training images" in said
    assert "warning: 1 images are in several classes" in said


def test_folders_are_classified(tmp_path, capsys):
    Layout(litter=("checkpoints",)).write(tmp_path / "data")
    assert run(["classify", str(tmp_path / "data")]) == 0
    out, err = capsys.readouterr()
    assert out.count(".png") == 12
    assert "left out: hidden or system entries: 1 (cat/.ipynb_checkpoints)" in err
    assert run(["classify", str(_made(tmp_path / "empty"))]) == 2


def test_strange_names_survive_cache_and_json(folder):
    layout = Layout(splits=13, classes=("\x1b[31mred", "\udcff\udcfe", "a\nb"), litter=("other format",))
    layout.write(folder)
    data = load(folder)
    layout.check(load(folder))
    json.dumps(data.classes, ensure_ascii=False).encode()
    assert "\x1b" not in str(data.found)


def test_a_folder_called_like_a_built_in_set_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("mnist", "digits"):
        Layout().write(tmp_path / name)
    assert load("mnist").classes == ("cat", "dog")
    assert len(load("digits").classes) == 10
    assert "mnist: the folder is read, not the built-in data set; pass ylecun/mnist for that" in caplog.text
    assert "digits: the built-in data set is read, not the folder; pass ./digits for that" in caplog.text
    assert load("./digits").classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["pipe.png", "folder.png", "dead.png"])
def test_what_is_no_plain_file_is_no_image(name, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    with pytest.raises(BadImage, match="a folder, a pipe, a device or a dead link; give an image file"):
        read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such image file"):
        read_image(tmp_path / ("n" * 300))
