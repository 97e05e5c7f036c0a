"""The condensing methods, by name.

A new method is one file beside this one and one name in the list below; a method that lives elsewhere joins by
`METHODS[name] = METHOD`.
"""

import importlib

from pocketcnn.errors import UnknownMethod
from pocketcnn.methods._method import Method, Range, Site

_NAMES = (
    "condconv",
    "involution",
    "pde",
    "puppet",
    "ring",
)

METHODS: dict[str, Method] = {name: importlib.import_module(f"{__name__}.{name}").METHOD for name in _NAMES}


def get_method(name: str) -> Method:
    """Looks up the record of a method.

    Raises:
        UnknownMethod: no method has that name; the message offers the nearest one.
    """
    if name not in METHODS:
        raise UnknownMethod(name, METHODS)
    return METHODS[name]


__all__ = ["METHODS", "Method", "Range", "Site", "get_method"]
