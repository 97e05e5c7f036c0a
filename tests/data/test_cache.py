import json
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pocketcnn.data import cache, load


@pytest.fixture
def cached(tmp_path):
    """A folder of photos, its cached file, and what it holds."""
    root = tmp_path / "photos"
    for name, grey in (("cat", 10), ("dog", 200)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((4, 4), grey + number, np.uint8)).save(root / name / f"{number}.png")
    data = load(root, cache=tmp_path / "store")
    [path] = (tmp_path / "store").iterdir()
    return root, path, data


def changed(path, tensors=None, about=None):
    """Writes a cached file again, with some of its tensors or of what it says changed."""
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["about"])
    content = load_file(path) | (tensors or {})
    save_file({k: v for k, v in content.items() if v is not None}, path, {"about": json.dumps(said | (about or {}))})


LABELS = torch.tensor([0, 1] * 6)
DAMAGE = {
    "one pixel": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x99"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "another format": lambda path: path.write_bytes(b"GIF89a" * 99),
    "no metadata": lambda path: save_file(load_file(path), path),
    "other labels": lambda path: changed(path, {"train_labels": LABELS + 1}),
    "other images": lambda path: changed(path, {"train_images": torch.zeros(12, 1, 4, 4, dtype=torch.uint8)}),
    "a missing tensor": lambda path: changed(path, {"train_labels": None}),
    "another tensor": lambda path: changed(path, {"test_images": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}),
    "classes of another type": lambda path: changed(path, about={"classes": [1, 2]}),
    "a class less": lambda path: changed(path, about={"classes": ["cat"]}),
    "less than nothing skipped": lambda path: changed(path, about={"skipped": -1}),
    "nested deeply": lambda path: save_file(load_file(path), path, {"about": "[" * 100_000}),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nothing")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_replaced_and_never_believed(cached, damage, caplog):
    root, path, data = cached
    DAMAGE[damage](path)
    with caplog.at_level(logging.WARNING):
        again = load(root, cache=path.parent)
    assert "is damaged and will be replaced" in caplog.text
    assert (again.fingerprint, again.classes, again.found) == (data.fingerprint, data.classes, data.found)
    caplog.clear()
    if damage != "a folder":  # which no file replaces
        assert load(root, cache=path.parent).fingerprint == data.fingerprint
        assert not caplog.text


SHAPES = {
    "float images": {"train_images": torch.zeros(12, 1, 4, 4)},
    "byte labels": {"train_labels": LABELS.to(torch.uint8)},
    "flat images": {"train_images": torch.zeros(12, 16, dtype=torch.uint8)},
    "two channels": {"train_images": torch.zeros(12, 2, 4, 4, dtype=torch.uint8)},
    "other counts": {"train_images": torch.zeros(5, 1, 4, 4, dtype=torch.uint8)},
    "labels beyond": {"train_labels": LABELS * 7},
    "labels below": {"train_labels": LABELS - 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_other_shapes_is_replaced_even_with_right_checksums(cached, shape, caplog):
    root, path, data = cached
    changed(path, SHAPES[shape])
    with safe_open(path, "pt") as file:
        sums = {name: cache._checksum(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    changed(path, about={"checksums": sums})
    assert load(root, cache=path.parent).fingerprint == data.fingerprint
    assert "is damaged and will be replaced" in caplog.text


def test_other_options_have_files_of_their_own(cached):
    root, path, _ = cached
    for count, how in enumerate(({"image_size": 2}, {"channels": 3}, {"skip_bad_images": True}, {"bits": 8}), start=2):
        load(root, cache=path.parent, **how)
        assert len(list(path.parent.iterdir())) == count
