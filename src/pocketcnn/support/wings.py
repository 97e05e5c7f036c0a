"""The file of a method's name in a wing, so that a wing finds what it knows of each method through the registry."""

import importlib
import importlib.util
from types import ModuleType


def part_of(wing: str, method: str) -> ModuleType | None:
    """Imports the file that a wing has for a method; None if the wing has no file of that name.

    Args:
        wing: dotted name of the package, `"pocketcnn.pictures"`; inside it `__name__` will do.
        method: name of the method, `"ring"`.
    Raises:
        ModuleNotFoundError: there is no such wing.
        Exception: whatever importing the file raises, a module missing inside it included.
    Example:
        >>> part_of("pocketcnn.experiments.bench.cases", "ring").__name__
        'pocketcnn.experiments.bench.cases.ring'
    """
    name = f"{wing}.{method}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
