"""Columns of tables: which one holds the images, which one the labels, and which class a label stands for.

A column is chosen by its name and by its type, and classes are known by their names. So files that number the same
names in another order, or lack some of them, give the same labels.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketcnn.errors import BadData
from pocketcnn.support.optional import optional_import
from pocketcnn.support.schema import parse_json, shaped

_IMAGE_WORDS = {"image", "images", "img", "imgs", "picture", "photo", "pixels", "png", "jpg", "jpeg"}
_PATH_WORDS = {"path", "filepath", "file", "filename"}
_LABEL_WORDS = {"label", "labels", "class", "classes", "target", "targets", "category"}
_METADATA = b"huggingface"
_REWRITE = "write the file again, or without these metadata"


@dataclass(frozen=True)
class Asked:
    """Names of the columns that a user asks for; None lets the library choose."""

    image: str | None = None
    label: str | None = None

    def __bool__(self) -> bool:
        return self.image is not None or self.label is not None


NOT_ASKED = Asked()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `holds` is "images" (encoded, as Hugging Face describes or stores them), "bytes", "texts", "numbers", "truths"
    (true or false), or another type in arrow's words. `names` are the classes that its numbers stand for.
    """

    name: str
    holds: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _ClassLabel:
    """What Hugging Face's metadata say of a column whose numbers have names."""

    names: list[str] | None = None


@dataclass(frozen=True)
class _Info:
    features: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Metadata:
    info: _Info = _Info()


def columns_of(schema: Any, where: str, fallback: Mapping[bytes, bytes] | None = None) -> tuple[Column, ...]:
    """Columns of an arrow schema, with what Hugging Face's metadata add to it.

    Args:
        schema: the arrow schema.
        where: the table's place, for messages.
        fallback: metadata for a schema that has none of Hugging Face.
    Raises:
        BadData, BrokenFile: the metadata are damaged, or two classes have one name.
    """
    metadata = schema.metadata or {}
    features = _features(metadata.get(_METADATA, (fallback or {}).get(_METADATA)), where)
    columns = []
    for field in schema:
        feature = features.get(field.name)
        kind = feature.get("_type") if isinstance(feature, dict) else None
        holds = "images" if kind == "Image" else _content(field.type)
        names = _class_names(feature, f"{where}: column {field.name!r}") if kind == "ClassLabel" else None
        columns.append(Column(field.name, holds, names))
    return tuple(columns)


def _features(metadata: bytes | None, where: str) -> dict[str, Any]:
    """Features by column, as Hugging Face's metadata describe them."""
    if metadata is None:
        return {}
    where = f"{where}: Hugging Face's metadata"
    content = parse_json(metadata, where, remedy=_REWRITE)
    return shaped(content, _Metadata, where, error=BadData, remedy=_REWRITE).info.features or {}


def _class_names(feature: Any, where: str) -> tuple[str, ...] | None:
    """Names of classes in their normal form, None if there are none; refuses two that are equal."""
    names = shaped(feature, _ClassLabel, where, error=BadData, remedy=_REWRITE).names
    if names is None:
        return None
    found = tuple(map(normal, names))
    if len(set(found)) < len(found):
        twice = next(name for name, count in Counter(found).items() if count > 1)
        raise BadData(f"{where}: two of its classes are called {twice!r}; give each class a name of its own")
    return found


def _content(kind: Any) -> str:
    """What values of an arrow type can be."""
    types = optional_import("pyarrow.types", extra="train", purpose="reading tables")
    while types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kind = kind.value_type
    tests = {
        "texts": (types.is_string, types.is_large_string, types.is_string_view),
        "numbers": (types.is_integer,),
        "truths": (types.is_boolean,),
        "bytes": (
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_fixed_size_binary,
            _is_byte_list,
        ),
        "images": (_is_encoded_image,),
    }
    return next((content for content, found in tests.items() if any(test(kind) for test in found)), f"{kind!s:.60}")


def _is_byte_list(kind: Any) -> bool:
    """Tells a list of bytes from other types."""
    types = optional_import("pyarrow.types", extra="train", purpose="reading tables")
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_uint8(kind.value_type)


def _is_encoded_image(kind: Any) -> bool:
    """Tells a struct with the bytes of a file, as Hugging Face stores images, from other types."""
    types = optional_import("pyarrow.types", extra="train", purpose="reading tables")
    return types.is_struct(kind) and any(field.name == "bytes" and _content(field.type) == "bytes" for field in kind)


def normal(name: str) -> str:
    """The form of a name in which names are compared: Unicode NFC."""
    return unicodedata.normalize("NFC", name)


def chosen(columns: Sequence[Column], where: str, asked: Asked) -> tuple[Column, Column]:
    """The image column and the label column of a table.

    Args:
        columns: all columns.
        where: the table's place, for messages.
        asked: columns that the user asks for.
    Raises:
        BadData: there is no such column, or more than one.
    """
    listed = ", ".join(column.name for column in columns) or "none"
    label = None if asked.label is None else _named(columns, asked.label, where, "label")
    others = [column for column in columns if column is not label]
    if asked.image is None:
        image = _only(_image_candidates(others), where, "images", "--image-column")
    else:
        image = _named(columns, asked.image, where, "image")
    if image is None:
        raise BadData(
            f"{where}: no column of images; its columns are {listed}; images are encoded files (PNG, JPEG, ...) as "
            "bytes, or a struct of bytes and path; write them so, or name the column with --image-column (image_column=)"
        )
    if label is image:
        raise BadData(
            f"{where}: column {image.name!r} cannot hold both images and labels; give another for one of them"
        )
    if label is None:
        others = [column for column in columns if column is not image]
        label = _only(_label_candidates(others), where, "labels", "--label-column")
    if label is None:
        raise BadData(
            f"{where}: labels are missing: none of its columns {listed} is called {', '.join(sorted(_LABEL_WORDS))} or "
            "holds class labels; name the column with --label-column (label_column=)"
        )
    return image, label


def _named(columns: Sequence[Column], name: str, where: str, what: str) -> Column:
    found = [column for column in columns if normal(column.name) == normal(name)]
    if len(found) != 1:
        listed = ", ".join(column.name for column in columns) or "none"
        count = "several columns are" if found else "no column is"
        raise BadData(f"{where}: {count} called {name!r}; its columns are {listed}; give one as {what} column")
    return found[0]


def _only(found: list[Column], where: str, what: str, flag: str) -> Column | None:
    """The only candidate, or None if there is none; refuses more."""
    if len(found) > 1:
        names = ", ".join(repr(column.name) for column in found)
        argument = flag[2:].replace("-", "_")
        raise BadData(f"{where}: several columns may be the {what}: {names}; choose one with {flag} ({argument}=)")
    return found[0] if found else None


def _words(name: str) -> set[str]:
    """Words of a column's name, in lower case."""
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def _image_candidates(columns: Sequence[Column]) -> list[Column]:
    """Columns that may hold the images: typed or called so; else bytes; else texts called like images or paths."""
    byte_columns = [column for column in columns if column.holds == "bytes"]
    typed = [
        column
        for column in columns
        if column.holds == "images" or (column in byte_columns and _words(column.name) & _IMAGE_WORDS)
    ]
    paths = [
        column
        for column in columns
        if column.holds == "texts" and column.names is None and _words(column.name) & (_IMAGE_WORDS | _PATH_WORDS)
    ]
    return typed or byte_columns or paths


def _label_candidates(columns: Sequence[Column]) -> list[Column]:
    """Columns that are called like labels, or whose numbers have class names."""
    return [column for column in columns if column.names is not None or _words(column.name) & _LABEL_WORDS]


@dataclass(frozen=True)
class Meaning:
    """What the labels of a data set stand for.

    `classes` are the names of the training files in their order, None if the classes are the labels themselves, sorted.
    `as_names` tells that plain numbers are the names of classes, as in digits.
    """

    classes: tuple[str, ...] | None
    as_names: bool = False

    def label(self, value: Any, column: Column, where: str, row: int) -> str | int | None:
        """The label that a value in a file stands for: a class's name, a number, or None if there is none.

        Raises:
            BadData: the value is neither a whole number nor a text, or a number beyond the names.
        """
        if value is None or (column.holds == "numbers" and value == -1):  # -1 is Hugging Face's "no label"
            return None
        if isinstance(value, str):
            return normal(value)
        if not isinstance(value, int):
            shown = f"{value!r:.60}"
            raise BadData(
                f"{where} row {row}: label {shown} is neither a whole number nor a text; give each image one class"
            )
        if column.names is None:
            return str(value) if self.as_names or isinstance(value, bool) else value
        if not 0 <= value < len(column.names):
            raise BadData(
                f"{where} row {row}: label {value}, but its column {column.name!r} has the names of {len(column.names)} "
                "classes, from 0; correct the file"
            )
        return column.names[value]


def meaning_of(train: Sequence[tuple[str, Column]], others: Sequence[tuple[str, Column]]) -> Meaning:
    """Finds what the labels of all files stand for.

    Args:
        train: place and label column of each training file.
        others: place and label column of the other files.
    Raises:
        BadData: labels are numbers in some files and names in others, and a number's name cannot be told.
    """
    families: dict[str, str] = {}  # the first file of each kind
    for where, column in (*train, *others):
        family = "names" if column.names is not None or column.holds == "texts" else column.holds
        if family in ("names", "numbers", "truths"):  # a column of nothing fits all; other values are refused by row
            families.setdefault(family, where)
    lists = [column.names for _, column in (*train, *others) if column.names is not None]
    if len(families) > 1:
        digits = bool(lists) and all(name == str(number) for names in lists for number, name in enumerate(names))
        texts = any(column.holds == "texts" for _, column in (*train, *others))
        if not digits or texts or "truths" in families:
            (first, place), (second, other) = list(families.items())[:2]
            raise BadData(
                f"labels are {first} in {place}, but {second} in {other}, so that it cannot be told which are the same; "
                "write all files with one kind of label"
            )
        return Meaning(_in_order(lists), as_names=True)
    return Meaning(_in_order([column.names for _, column in train if column.names is not None]))


def _in_order(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """All names of some lists, in order of appearance; None without lists."""
    return tuple(dict.fromkeys(name for names in lists for name in names)) if lists else None


def alike(classes: Sequence[str]) -> tuple[str, ...]:
    """A line that names two classes which differ only in case or blanks, if there are such; they stay two classes."""
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault("".join(name.casefold().split()), name)
        if other != name:
            return (f"classes {other!r} and {name!r} differ only in case or blanks; they are taken as two",)
    return ()
