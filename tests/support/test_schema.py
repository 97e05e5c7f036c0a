"""What files hold is held against a typed shape; whatever is wrong is named in one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from pocketcnn.errors import BrokenFile, ForeignFile
from pocketcnn.support.schema import parse_json, read_shaped, shaped


@dataclass(frozen=True)
class Part:
    seed: Annotated[int, Meta(ge=0)]
    options: dict[str, Any]


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    share: float = 0.5


RIGHT = {"parts": [{"seed": 2**64 - 1, "options": {"a": [None]}}], "share": 1, "another": 3}


def test_right_content_becomes_the_type() -> None:
    assert shaped(RIGHT, Whole, "x.json", remedy="") == Whole([Part(2**64 - 1, {"a": [None]})], 1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "Expected object, got array"),
        ({}, "missing required field parts"),
        ({"parts": {}}, "got object at parts"),
        ({"parts": [{"seed": -1, "options": {}}]}, r"Expected int >= 0 at parts\[0\].seed"),
        ({"parts": [{"seed": True, "options": {}}]}, "got bool"),
        ({"parts": [{"seed": 1.5, "options": {}}]}, "got float"),
        ({"parts": [{"seed": 1, "options": {}}], "share": "1"}, "got str at share"),
    ],
)
def test_wrong_content_is_one_line(content: Any, words: str) -> None:
    with pytest.raises(BrokenFile, match=f"x.json: .*{words}.*; copy it again"):
        shaped(content, Whole, "x.json", remedy="copy it again")


def test_files_are_bounded_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[" * 200_000)
    with pytest.raises(BrokenFile, match="nested too deeply"):
        read_shaped(file, Whole, remedy="")
    with pytest.raises(ForeignFile, match=r"200,000 bytes"):
        read_shaped(file, Whole, remedy="", most_bytes=1000)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(BrokenFile, match="not readable as JSON"):
        parse_json(file.read_bytes(), str(file), remedy="")
    with pytest.raises(ForeignFile, match="not a plain file"):
        read_shaped(tmp_path, Whole, remedy="")
