"""Separates the sections of docstrings by empty lines, which the source leaves out and the reader of the reference needs."""

import re
from typing import Any

from griffe import Extension

_SECTION = re.compile(r"\n+(?=(?:Args|Returns|Yields|Raises|Example|Cost|Order|Source):)")


class Sections(Extension):
    """Changes docstrings as they are read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            text = _SECTION.sub("\n\n", obj.docstring.value)
            obj.docstring.value = text.replace("\n\nExample:\n", "\n\nExamples:\n")  # else it is no code
