"""Images that a program has already become a data set; what cannot be images with labels is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pocketcnn.data import from_dataset, from_tensors, load
from pocketcnn.errors import BadData
from pocketcnn.train import TrainConfig, fit


def some(count=40, size=(3, 8, 8), classes=4):
    return torch.randint(256, (count, *size), dtype=torch.uint8), torch.arange(count) % classes


def test_tensors_are_divided_by_class_and_normalised_by_their_own_moments():
    images, labels = some()
    data = from_tensors(images, labels, classes=["a", "b", "c", "d"], name="mine")
    assert repr(data) == "DataSet(mine: 28 training, 4 validation and 8 test images of 3x8x8, 4 classes)"
    assert repr(data.test) == "Images(8 of 3x8x8)"
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    assert data.mean == pytest.approx(mean.tolist(), abs=1e-5)
    assert sorted(data.test.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert from_tensors(images, labels, classes="abcd", name="mine").fingerprint == data.fingerprint
    assert from_tensors(images, labels, seed=1).fingerprint != data.fingerprint


def test_given_splits_and_moments_are_kept():
    data = from_tensors(*some(12), test=some(8), validation=some(4), mean=[0.5] * 3, std=[0.25] * 3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 8]
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)


def test_floats_and_grey_images():
    data = from_tensors(np.linspace(0, 1, 40 * 64).reshape(40, 8, 8), np.arange(40) % 2)
    assert data.input_size == (1, 8, 8)
    assert int(data.train.images.max()) <= 255


def test_a_net_trains_on_it(tmp_path):
    data = from_tensors(*some(40, (1, 8, 8), 2))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    result = fit(net, data, TrainConfig(epochs=1, batch_size=8, precision="float32", channels_last="off"), tmp_path)
    assert 0 <= result["test_accuracy"] <= 1


class Items(Dataset):
    classes = ("even", "odd")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_a_data_set_of_torch():
    image = pytest.importorskip("PIL.Image")
    pictures = Items([(image.new("RGB", (8, 6), (i, 2 * i, 9)), i % 2) for i in range(20)])
    arrays = Items([(np.full((3, 6, 8), i, dtype=np.uint8), i % 2) for i in range(20)])
    floats = Items([(torch.full((3, 6, 8), i / 255), torch.tensor(i % 2)) for i in range(20)])
    for items in (pictures, arrays, floats):
        data = from_dataset(items, test=items)
        assert (data.input_size, data.classes, len(data.test)) == ((3, 6, 8), ("even", "odd"), 20)
        assert data.test.images[7, 0].unique().tolist() == [7]
    assert data.name == "Items"


def test_digits_by_hand_are_digits():
    digits = load("digits")
    again = from_tensors(*digits.train[:], test=digits.test[:], validation=digits.validation[:], classes=digits.classes)
    assert (again.fingerprint, again.mean, again.std) == (digits.fingerprint, digits.mean, digits.std)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (torch.randn(4, 1, 8, 8), torch.arange(4) % 2, {}, "give uint8, or floats in .0, 1. before they are normalised"),
        (torch.zeros(40, 8, 8, 3), torch.arange(40) % 2, {}, r"channels last; give images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 8), torch.arange(4), {}, r"images are \[4, 8\]; give \[n, channels, height, width\]"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0), {}, r"images are \[0, 1, 8, 8\]"),
        (torch.zeros(4, 8, 8, dtype=torch.int32), torch.arange(4), {}, "images are torch.int32; give uint8"),
        (torch.zeros(4, 8, 8), torch.zeros(4), {}, r"labels are torch.float32 of shape \[4\]"),
        (torch.zeros(4, 8, 8), torch.arange(3), {}, "a whole number for each of the 4 images"),
        (torch.zeros(40, 8, 8), torch.zeros(40, dtype=torch.long), {}, "only one class"),
        (torch.zeros(40, 8, 8), torch.arange(40) % 4, {"classes": "abc"}, "labels from 0 to 3, but 3 classes|no training"),
        (torch.zeros(40, 8, 8), torch.arange(40) % 2 - 1, {"classes": "ab"}, "labels from -1 to 0, but 2 classes"),
        (torch.zeros(40, 8, 8), torch.arange(40) % 2, {"test": some(4, (1, 9, 9), 2)}, "images of 1x9x9 beside images of 1x8x8"),
    ],
)  # fmt: skip
def test_what_is_no_data_set(images, labels, options, message):
    with pytest.raises(BadData, match=message):
        from_tensors(images, labels, **options)


def test_items_that_are_no_images_with_labels():
    with pytest.raises(BadData, match="item 0 is a Tensor, not an image and a label"):
        from_dataset(Items([torch.zeros(1, 8, 8)]))
    with pytest.raises(BadData, match=r"image 1 is \[1, 9, 9\], others are \[1, 8, 8\]; resize all to one size"):
        from_dataset(Items([(torch.zeros(1, 8, 8), 0), (torch.zeros(1, 9, 9), 1)]))
    with pytest.raises(ValueError, match="a mean and a std for each of the 3 channels"):
        from_tensors(*some(), mean=[0.5])
