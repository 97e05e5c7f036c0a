import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketcnn.data import decode, load, open_stream, read_image
from pocketcnn.data.decode import BITS, RawImage, Reading, bits_of, decode_image, decode_splits
from pocketcnn.errors import BadImage


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG as Pillow does not write it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_rgb(pixels):
    """A PNG of 16 bits per channel."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, {3: 2, 4: 6}[pixels.shape[2]], rows)


def deep_tiff(pixels, order):
    """An uncompressed RGB TIFF of 16 bits per channel."""
    height, width, _ = pixels.shape
    content = pixels.astype(f"{order}u2").tobytes()
    values = [
        (256, width),
        (257, height),
        (258, None),
        (259, 1),
        (262, 2),
        (273, None),
        (277, 3),
        (278, height),
        (279, len(content)),
    ]
    end = 8 + 2 + 12 * len(values) + 4
    entries = b""
    for tag, value in values:
        if value is None:
            entries += struct.pack(f"{order}HHII", tag, *((3, 3, end) if tag == 258 else (4, 1, end + 6)))
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    tags = struct.pack(f"{order}IH", 8, len(values)) + entries + struct.pack(f"{order}I3H", 0, 16, 16, 16)
    return start + tags + content


def decoded(content, **reading):
    return decode_image(RawImage("here", content, None), Reading(**reading))


DEEP = np.random.default_rng(0).integers(0, 4096, (5, 6, 3)).astype(np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        *(encoded(DEEP[..., 0], kind) for kind in ("PNG", "TIFF", "PPM", "JPEG2000")),
        encoded(DEEP[..., 0], "TIFF", compression="tiff_lzw"),
        encoded(DEEP[..., 0].astype(np.int32), "TIFF"),
    ],
)
def test_deep_grey_pixels_keep_all_bits(content):
    pixels = decoded(content)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels[0], DEEP[..., 0])
    assert np.array_equal(decoded(content, bits=12)[0], DEEP[..., 0] >> 4)
    assert decoded(content, channels=3, image_size=3).shape == (3, 3, 3)


@pytest.mark.parametrize("content", [deep_rgb(DEEP), deep_tiff(DEEP, "<"), deep_tiff(DEEP, ">")])
def test_deep_colours_keep_all_bits(content):
    assert np.array_equal(decoded(content).transpose(1, 2, 0), DEEP)
    grey = decoded(content, channels=1)[0].astype(int)
    assert abs(grey - DEEP @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


def test_an_alpha_channel_says_that_all_bits_are_used():
    pixels = np.full((2, 2, 4), 65535, np.uint16)
    pixels[..., :3] = 0x4080
    assert decoded(deep_rgb(pixels)).tolist() == np.full((3, 2, 2), 0x40).tolist()


def test_resized_deep_pixels_stay_in_range():
    edge = np.zeros((8, 8), np.uint16)
    edge[:, 4:] = 4095
    pixels = decoded(encoded(edge), image_size=30)
    assert (pixels.min(), pixels.max()) == (0, 4095), "what bicubic interpolation adds at edges is cut off"


@settings(max_examples=30, deadline=None)
@given(most=st.lists(st.integers(1, 65535), min_size=1, max_size=4), shallow=st.booleans())
def test_one_scale_holds_for_a_data_set(most, shallow):
    """Images keep their order of brightness, and the brightest uses the upper half of the 8 bits."""
    contents = [encoded(np.array([[0, value]], np.uint16)) for value in most]
    raw = [RawImage("x", content, 0) for content in contents]
    if shallow:
        raw.append(RawImage("x", encoded(np.array([[0, 99]], np.uint8)), 0))
    found, read = decode_splits("set", {"train": raw[:1], "test": raw[1:]} if raw[1:] else {"train": raw}, Reading())
    values = [int(image.max()) for split in found.values() for image in split.images]
    bits = next(bits for bits in BITS if max(most) < 1 << bits)
    assert values[: len(most)] == [value >> bits - 8 for value in most]
    assert values[len(most) :] == [99] * shallow
    assert read.notes == (f"pixels of 16 bits are read as {bits} bits, the fewest that hold the largest value",)
    assert read.bits == bits


def test_large_images_are_held_in_small_numbers(monkeypatch):
    monkeypatch.setattr(decode, "CHUNK_BYTES", 10)
    read = []

    def raw():
        for number in range(9):
            read.append(number)
            yield RawImage("x", b"12345", number)

    monkeypatch.setattr(decode, "decode_image", lambda item, _: np.full((1, 1, 1), len(read), np.uint8))
    pixels, labels, _ = decode.decode_all(raw(), Reading())
    assert labels == list(range(9))
    assert [int(image[0, 0, 0]) for image in pixels] == [2, 2, 4, 4, 6, 6, 8, 8, 9]


def test_bits_of_shallow_images_are_none():
    assert bits_of([np.zeros((1, 2, 2), np.uint8)]) is None
    assert bits_of([]) is None


def test_data_sets_of_deep_images(tmp_path, caplog):
    """12 bits in 16: the dark class has values below 256, which 8 of 16 bits would make black."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    grey = [200, 4000] * 8
    for split in ("train", "test"):
        cells = [encoded(np.full((4, 4), value, np.uint16)) for value in grey]
        pq.write_table(pa.table({"image": cells, "label": [0, 1] * 8}), tmp_path / f"{split}.parquet", row_group_size=4)
    caplog.set_level(logging.INFO)
    for data in (load(tmp_path), open_stream(tmp_path, image_size=4, channels=1)):
        for split in (data.train, data.validation, data.test):
            images, labels = next(iter(split.in_order(99)))
            assert torch.equal(images[:, 0, 0, 0], torch.tensor([200 >> 4, 4000 >> 4], dtype=torch.uint8)[labels])
        assert any("are read as 12 bits" in note for note in data.found.notes)
    assert "are read as 12 bits" in caplog.text
    assert load(tmp_path, bits=16).test.images.max() == 4000 >> 8
    assert open_stream(tmp_path, image_size=4, channels=1, bits=16).test.sample(9).images.max() == 4000 >> 8
    with pytest.raises(
        BadImage, match=r"row 1: .*its largest value 4000 needs more than 10 bits; give .* --pixel-bits"
    ):
        load(tmp_path, bits=10)
    with pytest.raises(ValueError, match="bits must be one of 8, 10, 12, 14, 16, not 11"):
        load(tmp_path, bits=11)


def test_bits_of_a_single_image_are_told(tmp_path, caplog):
    Image.fromarray(np.array([[0, 900]], np.uint16)).save(tmp_path / "a.png")
    caplog.set_level(logging.INFO)
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 900 >> 2]]]
    assert "a.png: pixels of 16 bits are read as 10 bits" in caplog.text
    assert read_image(tmp_path / "a.png", bits=12).tolist() == [[[0, 900 >> 4]]]


MODES = {  # what a black image of a mode is read as
    "1": [0], "L": [0], "LA": [255], "P": [0, 0, 0], "PA": [255, 255, 255], "RGB": [0, 0, 0], "RGBA": [255, 255, 255],
    "CMYK": [255, 255, 255],
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    pixels = decoded(encoded(Image.new(mode, (3, 2)), "TIFF"))
    assert pixels.dtype == np.uint8
    assert pixels[:, 0, 0].tolist() == MODES[mode], "what is transparent is laid on white"


def test_the_first_frame_is_read():
    frames = [Image.new("L", (3, 3), value) for value in (10, 200)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        content = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert decoded(content, channels=1).tolist() == [[[10] * 3] * 3]


def test_long_images_are_cropped_before_they_are_resized():
    for size in ((1_000_000, 1), (1, 60_000)):
        assert decoded(encoded(Image.new("L", size, 7)), image_size=32).tolist() == np.full((1, 32, 32), 7).tolist()
    ramp = np.arange(200, dtype=np.uint8)[None].repeat(10, 0)  # 20 times as long as high
    assert np.array_equal(decoded(encoded(ramp), image_size=10)[0], ramp[:, 95:105])


TEXTS = b"".join(chunk(b"zTXt", b"a%d\0\0" % i + zlib.compress(bytes(1_000_000))) for i in range(80))
HOSTILE = {
    "bomb": (encoded(Image.new("1", (20_000, 20_000))), "exceeds limit of 178956970 pixels"),
    "text": (png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))), "data too large"),
    "texts": (png(1, 1, 8, 0, b"\0\0", TEXTS), "Too much memory used in text chunks"),
    "canvas": (png(2**31 - 1, 2**31 - 1, 8, 0, b""), "exceeds limit"),
    "gif": (encoded(Image.new("P", (4, 4)), "GIF").replace(b"\4\0\4\0", b"\xff\xff\xff\xff", 1), "exceeds limit"),
    "no size": (png(0, 0, 8, 0, b""), "its format is not that of an image"),
    "cut short": (encoded(Image.effect_noise((50, 50), 90), "JPEG")[:400], "truncated"),
    "float": (encoded(np.ones((2, 2), np.float32), "TIFF"), "pixels of mode F have no known range"),
    "below zero": (encoded(np.full((2, 2), -5, np.int32), "TIFF"), "pixels of mode I have no known range"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "its format is not that of an image"),
    "empty": (b"", "its format is not that of an image"),
    "none": (None, "there is no image in the row"),
    "missing": (Path("/no/such/image.png"), "No such file"),
    "device": (Path("/dev/zero"), "it is no plain file"),
    "folder": (Path("/"), "it is no plain file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_are_bad_images(kind):
    content, reason = HOSTILE[kind]
    found = decoded(content, image_size=8)
    assert isinstance(found, BadImage)
    assert reason in str(found)
    assert "\n" not in str(found)
    assert "object at" not in str(found)


def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "it is no plain file" in str(decoded(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "error",
    [struct.error("x"), SyntaxError("x"), OverflowError("x"), MemoryError(), RecursionError("x"), KeyError("x")],
)
def test_errors_of_all_kinds_are_bad_images(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert "here: cannot be decoded (" in str(decoded(b"x"))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    size=st.sampled_from([None, 5]),
)
def test_changed_bytes_give_pixels_or_bad_images(kind, changes, size):
    content = bytearray(encoded(Image.new("RGB", (9, 7), (9, 99, 199)), kind))
    for place, value in changes:
        content[place % len(content)] = value
    found = decoded(bytes(content), image_size=size, channels=3)
    assert isinstance(found, BadImage) or (found.dtype in (np.uint8, np.uint16) and found.shape[0] == 3)
