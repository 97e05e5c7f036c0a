"""What a model file says of its net's images, and the images and data sets that it is applied to."""

import dataclasses

import pytest
import torch

import pocketcnn as pc
from pocketcnn.checkpoint.notes import ImageNotes

COLOURS = {
    "data": "pets",
    "classes": ["cat", "dog"],
    "input_size": [3, 8, 6],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2] * 3,
}


def test_notes_of_data_travel_through_a_file(digits, tmp_path):
    notes = ImageNotes.of(digits)
    assert notes.lacks() == []
    written = ImageNotes.of(digits).as_dict()
    assert written == {
        "data": "digits",
        "classes": list(digits.classes),
        "input_size": [1, 8, 8],
        "mean": list(digits.mean),
        "std": list(digits.std),
    }
    assert list(written) == ["data", "classes", "input_size", "mean", "std"], "files are the same to the byte"
    net = pc.create_model("resnet20", in_channels=1, width=0.25)
    pc.save(net, tmp_path / "model.safetensors", notes=written)
    assert ImageNotes.read(tmp_path / "model.safetensors") == ImageNotes.read(tmp_path) == notes


@pytest.mark.parametrize("name", list(COLOURS))
@pytest.mark.parametrize("change", ["gone", "another type", "empty"])
def test_an_entry_that_a_file_lacks_is_named(name, change):
    damaged = {"gone": {}, "another type": {name: 7}, "empty": {name: type(COLOURS[name])()}}[change]
    notes = ImageNotes.from_notes({**{k: v for k, v in COLOURS.items() if k != name}, **damaged, "author": "me"})
    assert notes.lacks() == [name]
    assert notes.lacks(*(other for other in COLOURS if other != name)) == []


DAMAGED = {
    "data": [3, ["pets"], {"a": 1}],
    "classes": [5, "cat", [1], [None], {"cat": 0}],
    "input_size": [7, [3, 8], [3, 8, 0], [3, 8, 10**12], [3, 8, 6, 1], [3.5, 8, 6], ["3", 8, 6]],
    "mean": ["x", [None], [float("nan")] * 3, [0.5], [0.5] * 4],
    "std": [[0.0] * 3, [-1.0] * 3, [float("inf")] * 3, [True] * 3, [0.2]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in DAMAGED.items() for value in values])
def test_an_entry_of_another_form_is_left_out_with_a_word(name, value, caplog):
    notes = ImageNotes.from_notes({**COLOURS, name: value})
    assert notes.lacks() == [name]
    assert "the notes of a model file are damaged" in caplog.text
    assert name in caplog.text


def test_images_are_normalised_channel_by_channel():
    pixels = torch.randint(0, 256, (4, 3, 8, 6), dtype=torch.uint8)
    x = ImageNotes.from_notes(COLOURS).normalise(pixels)
    assert x.dtype == torch.float32
    for channel in range(3):
        by_hand = (pixels[:, channel].double() / 255 - COLOURS["mean"][channel]) / COLOURS["std"][channel]
        torch.testing.assert_close(x[:, channel].double(), by_hand, atol=1e-6, rtol=1e-6)
    assert torch.equal(ImageNotes().normalise(pixels), pixels.float() / 255), "without notes only scaled"


def test_a_data_set_is_normalised_by_the_net_that_sees_it(digits):
    notes = dataclasses.replace(ImageNotes.of(digits), mean=(0.9,), std=(0.02,))
    seen = notes.applied_to(digits)
    assert (seen.mean, seen.std) == ((0.9,), (0.02,))
    assert seen == dataclasses.replace(digits, mean=(0.9,), std=(0.02,))
    assert ImageNotes(mean=(0.9,)).applied_to(digits) is digits, "half of the numbers are none"


def test_notes_say_how_ambiguous_files_were_read():
    """Most data sets are read in one way only; their notes stay as they were."""
    plain = ImageNotes(data="d", classes=("a", "b"), input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    assert "reading" not in plain.as_dict()
    assert plain.lacks() == []
    asked = {"image_column": "photo", "bits": 12}
    notes = dataclasses.replace(plain, reading=asked)
    assert ImageNotes.from_notes(notes.as_dict()) == notes
    for damaged in ([1], {"bits": 11}, {"bits": "12"}, {"image_column": 3}):
        assert ImageNotes.from_notes({**notes.as_dict(), "reading": damaged}) == plain
