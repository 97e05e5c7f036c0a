import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from pocketcnn.data import Augmentation, augment, load, read_image
from pocketcnn.data.columns import NOT_ASKED, chosen, columns_of, meaning_of
from pocketcnn.data.decode import Reading, decode_all
from pocketcnn.errors import BadData, BadImage, UnknownData


def picture(path, size=(6, 5), mode="RGB", value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.RandomState(len(str(path)) if value is None else value).randint(0, 256, (*size[::-1], *channels))
    Image.fromarray(pixels.astype(np.uint8), mode=None).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Folder of two classes of eight RGB images, 6 wide and 5 high."""
    root = tmp_path / "pets"
    for number in range(8):
        for name in ("cat", "dog"):
            picture(root / name / f"{number}.png", value=number)
    return root


def parquet(path, images, labels, **features):
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = []
    for pixels in images:
        if isinstance(pixels, bytes):
            encoded.append({"bytes": pixels, "path": None})
            continue
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": encoded} | ({} if labels is None else {"label": labels})
    kinds = {"image": datasets.Image()} | (
        {} if labels is None else {"label": features.get("label", datasets.Value("int64"))}
    )
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(path))


@pytest.fixture
def parquets(tmp_path):
    import datasets

    root = tmp_path / "set"
    random = np.random.RandomState(0)
    label = datasets.ClassLabel(names=["ant", "bee"])
    for split, count in (("train", 12), ("test", 4)):
        images = random.randint(0, 256, (count, 4, 5), dtype=np.uint8)
        parquet(root / f"{split}-00000-of-00001.parquet", list(images), [i % 2 for i in range(count)], label=label)
    return root


def test_digits_are_real_and_split_by_seed():
    data, again, other = load("digits"), load("digits"), load("digits", seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.input_size == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert torch.equal(data.train.images, again.train.images)
    assert not torch.equal(data.validation.images, other.validation.images)
    assert torch.equal(data.test.images, other.test.images), "the test split does not depend on the seed"
    assert not data.augmentation.flip
    assert set(data.validation.labels.tolist()) == set(range(10))


def test_normalisation_is_that_of_the_training_images():
    data = load("digits")
    pixels = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert data.std[0] == pytest.approx(float(pixels.std(unbiased=False)), abs=1e-6)


def test_class_folders(folder):
    data = load(folder)
    assert data.classes == ("cat", "dog")
    assert data.input_size == (3, 5, 6)
    assert len(data.train) + len(data.validation) + len(data.test) == 16
    expected = np.asarray(Image.open(folder / "cat" / "0.png")).transpose(2, 0, 1)
    everything = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert (everything == torch.from_numpy(expected.copy())).flatten(1).all(
        1
    ).sum() == 2  # both classes have this picture


def test_class_folders_with_their_own_test_split(folder, tmp_path):
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split" / "train")
    for name in ("cat", "dog"):
        picture(tmp_path / "split" / "test" / name / "a.png")
    data = load(tmp_path / "split")
    assert len(data.test) == 2
    assert len(data.train) + len(data.validation) == 16


def test_parquet_folder(parquets):
    data = load(parquets)
    assert data.classes == ("ant", "bee")
    assert data.input_size == (1, 4, 5)
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 4)


def test_hub_ids_go_through_the_same_reading(parquets, tmp_path, monkeypatch):
    """A folder replaces the repository on the hub: the same loader finds, streams and splits it."""
    import datasets

    import pocketcnn.data.sources as sources

    decoded = sources.HubDataSet(str(parquets), home=str(parquets)).decode(Reading())
    assert decoded.classes == ("ant", "bee")
    assert (len(decoded.train), len(decoded.test)) == (12, 4)

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        BadData, match=r"uoft-cs/cifar10: cannot be loaded from the Hugging Face hub \(ConnectionError\)"
    ):
        load("cifar10")


def test_the_cache_is_used_until_the_files_change(folder, tmp_path, monkeypatch):
    load(folder)
    [cached] = (tmp_path / "cache").glob("*.safetensors")
    from pocketcnn.data import decode

    def fail(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode_image", fail)
        assert len(load(folder).classes) == 2
    picture(folder / "cat" / "new.png", value=99)
    data = load(folder)
    assert len(data.train) + len(data.validation) + len(data.test) == 17
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    cached.write_bytes(b"broken")
    os.unlink(folder / "cat" / "new.png")
    assert len(load(folder).train) > 0, "a damaged cache file is replaced"


def test_sizes_and_colours_can_be_unified(folder):
    picture(folder / "dog" / "wide.png", size=(12, 7))
    with pytest.raises(BadImage, match=r"wide\.png: 7 x 12 pixels, but the images before are 5 x 6 .*pass image_size="):
        load(folder)
    assert load(folder, image_size=4).input_size == (3, 4, 4)
    picture(folder / "dog" / "zgrey.png", mode="L")
    with pytest.raises(BadImage, match=r"zgrey\.png: grey, but the images before are RGB; pass channels=1"):
        load(folder, image_size=4)
    assert load(folder, image_size=4, channels=1).input_size == (1, 4, 4)
    assert load("digits", channels=3, image_size=16).input_size == (3, 16, 16)


@pytest.mark.parametrize("damage", [b"not an image", None])
def test_a_bad_image_is_named_or_counted(folder, damage):
    bad = folder / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60] if damage is None else damage)
    with pytest.raises(BadImage, match=r"cat/3\.png: cannot be decoded .*--skip-bad-images"):
        load(folder)
    data = load(folder, skip_bad_images=True)
    assert data.skipped == 1
    assert len(data.train) + len(data.validation) + len(data.test) == 15


def test_a_bad_image_in_a_parquet_file_is_named_by_row(tmp_path):
    images = [np.zeros((4, 4), np.uint8)] * 6
    parquet(tmp_path / "set" / "train.parquet", [*images[:2], b"junk", *images[2:]], [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(BadImage, match=r"train\.parquet row 2: cannot be decoded"):
        load(tmp_path / "set")
    assert load(tmp_path / "set", skip_bad_images=True).skipped == 1


def test_a_truncated_parquet_file_is_named(parquets):
    path = parquets / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadData, match=r"train-00000-of-00001\.parquet"):
        load(parquets)


def test_missing_labels(tmp_path, folder):
    parquet(tmp_path / "set" / "train.parquet", [np.zeros((4, 4), np.uint8)] * 4, None)
    with pytest.raises(BadData, match="labels are missing: none of its columns image"):
        load(tmp_path / "set")
    parquet(tmp_path / "holes" / "train.parquet", [np.zeros((4, 4), np.uint8)] * 4, [0, 1, None, 1])
    with pytest.raises(BadData, match="1 of 4 training images have no label"):
        load(tmp_path / "holes")
    loose = tmp_path / "loose"
    picture(loose / "a.png")
    with pytest.raises(BadData, match="labels are missing: 1 images lie in the folder itself"):
        load(loose)


def test_empty_and_single_classes(folder, tmp_path):
    (folder / "emu").mkdir()
    with pytest.raises(BadData, match="emu: no images of this class"):
        load(folder)
    for number in range(3):
        picture(tmp_path / "one" / "cat" / f"{number}.png")
    with pytest.raises(BadData, match=r"only one class \(cat\); a classifier needs at least two"):
        load(tmp_path / "one")
    import datasets

    label = datasets.ClassLabel(names=["ant", "bee", "cow"])
    parquet(tmp_path / "set" / "train.parquet", [np.zeros((4, 4), np.uint8)] * 4, [0, 1, 0, 1], label=label)
    with pytest.raises(BadData, match="no training images of class 'cow'"):
        load(tmp_path / "set")


def test_test_classes_must_be_training_classes(folder, tmp_path):
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split" / "train")
    picture(tmp_path / "split" / "test" / "yak" / "a.png")
    with pytest.raises(BadData, match="label 'yak' is not one of the training classes cat, dog"):
        load(tmp_path / "split")


def test_classes_may_be_called_like_splits(tmp_path):
    for name in ("car", "train", "bus"):
        for number in range(3):
            picture(tmp_path / "traffic" / name / f"{number}.png", value=number)
    assert load(tmp_path / "traffic").classes == ("bus", "car", "train")


def test_strange_labels_and_small_classes(tmp_path, folder):
    import datasets

    parquet(
        tmp_path / "set" / "train.parquet",
        [np.zeros((4, 4), np.uint8)] * 4,
        [0.5, 1.5, 0.5, 1.5],
        label=datasets.Value("float32"),
    )
    with pytest.raises(BadData, match=r"label 0\.5 is neither a whole number nor a text"):
        load(tmp_path / "set")
    for number in range(2):
        picture(folder / "eel" / f"{number}.png", value=number)
    with pytest.raises(BadData, match="class 'eel' has 2 images; a class needs at least 3, one for each split"):
        load(folder)
    with pytest.raises(ValueError, match="limit must be at least 1 image, not 0"):
        load("digits", limit=0)


def test_an_unwritable_cache_is_logged_and_not_used(folder, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    data = load(folder, cache=tmp_path / "file" / "cache")
    assert len(data.classes) == 2
    assert "POCKETCNN_CACHE" in caplog.text


def test_image_folders_of_the_hub_are_opened_by_their_address(folder):
    import datasets

    import pocketcnn.data.sources as sources

    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", streaming=True)
    columns = chosen(columns_of(rows.features.arrow_schema, "pets"), "pets", NOT_ASKED)
    meaning = meaning_of([("pets", columns[1])], [])
    streamed = sources.streamed_rows(rows, "pets", columns, meaning, str(folder))
    images, labels, skipped = decode_all(streamed, Reading())
    assert (len(images), sorted(set(labels)), skipped) == (16, ["cat", "dog"], 0)
    with pytest.raises(BadData, match="lies outside of the data set's repository"):
        list(sources.streamed_rows(rows, "pets", columns, meaning, "hf://datasets/owner/name"))


def test_the_fingerprint_tells_how_images_were_read():
    prints = {
        load("digits", **how).fingerprint
        for how in ({}, {"image_size": 16}, {"channels": 3}, {"seed": 5}, {"limit": 9})
    }
    assert len(prints) == 5
    assert load("digits").fingerprint == load("digits").fingerprint


def test_unknown_sets():
    with pytest.raises(UnknownData, match=r"no data set 'cifar11'; did you mean 'cifar10'"):
        load("cifar11")
    with pytest.raises(UnknownData, match="there is no such folder"):
        load("./nowhere/at/all")
    with pytest.raises(ValueError, match="validation must be a fraction"):
        load("digits", validation=1.5)


def test_augmentation_equals_shifting_and_mirroring_one_by_one():
    images = torch.randint(0, 256, (6, 2, 5, 4), dtype=torch.uint8)
    how = Augmentation(crop=2, flip=True)
    y = augment(images, how, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for image, result in zip(padded, y, strict=True):
        shifted = [image[:, i : i + 5, j : j + 4] for i in range(5) for j in range(5)]
        assert any(torch.equal(result, s) or torch.equal(result, s.flip(2)) for s in shifted)
    assert torch.equal(y, augment(images, how, torch.Generator().manual_seed(1)))
    assert not torch.equal(y, augment(images, how, torch.Generator().manual_seed(2)))
    assert augment(images, Augmentation(), torch.Generator()) is images


@pytest.mark.parametrize("crop", [0, 2, 9])
def test_shifted_images_are_filled_with_what_is_inside_reflected(crop):
    images = torch.arange(3 * 2 * 5 * 4).reshape(3, 2, 5, 4).to(torch.uint8)
    how = Augmentation(crop=crop, border="reflect")
    mirrored = torch.tensor([True, False, True])
    y = augment(images, how, torch.Generator().manual_seed(1), mirrored=mirrored)
    shift = torch.randint(0, 2 * crop + 1, (2, 3, 1), generator=torch.Generator().manual_seed(1))[..., 0] - crop
    for image, out, mirror, down, right in zip(images, y, mirrored, *shift.tolist(), strict=True):
        source = image.flip(2) if mirror else image
        wide = np.pad(source.numpy(), ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
        right = -right if mirror else right  # the window moves with the mirror
        expected = wide[:, crop + down : crop + down + 5, crop + right : crop + right + 4]
        assert np.array_equal(out.numpy(), expected)


def test_cutout_is_a_black_square():
    images = torch.full((50, 1, 9, 9), 255, dtype=torch.uint8)
    y = augment(images, Augmentation(cutout=4), torch.Generator().manual_seed(0))
    holes = (y == 0).flatten(1).sum(1)
    assert holes.max() == 16
    assert holes.min() >= 4  # a quarter of the square if its centre is in a corner
    with pytest.raises(ValueError, match="crop and cutout are numbers of pixels"):
        Augmentation(crop=-1)


def test_real_data_sets(shared_data):
    data = load(shared_data / "mnist", limit=100)
    assert (len(data.train), len(data.validation), len(data.test)) == (100, 5999, 10_000)
    assert data.mean[0] == pytest.approx(0.1307, abs=0.01)
    assert data.std[0] == pytest.approx(0.3081, abs=0.01)
    assert not data.augmentation.flip


def test_photos_are_turned_upright_laid_on_white_and_brought_to_8_bits(tmp_path):
    lying = np.zeros((4, 6), dtype=np.uint8)
    lying[0] = 255  # the upper edge of the image on the camera's chip
    photo = Image.fromarray(lying)
    exif = photo.getexif()
    exif[0x0112] = 6  # the viewer must turn it right by 90 degrees
    photo.save(tmp_path / "photo.png", exif=exif)
    upright = read_image(tmp_path / "photo.png")
    assert upright.shape == (1, 6, 4)
    assert (upright[0, :, -1] == 255).all()
    assert not upright[0, :, :-1].any()

    glass = np.zeros((2, 2, 4), dtype=np.uint8)
    glass[0, 0] = (10, 20, 30, 255)
    Image.fromarray(glass).save(tmp_path / "glass.png")
    seen = read_image(tmp_path / "glass.png")
    assert seen[:, 0, 0].tolist() == [10, 20, 30]
    assert (seen[:, 1] == 255).all(), "transparent black becomes white"

    deep = np.array([[0, 256 * 200 + 7]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 200]]]
