"""The one gate to optional packages, guarded against missing and broken ones alike."""

import importlib
from types import ModuleType

from pocketcnn.errors import MissingExtra


def optional_import(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports `module`, or says which extra brings it.

    Args:
        module: dotted module name.
        extra: the extra of this package that installs it.
        purpose: what needs it, as the subject of a sentence: "training".
    Raises:
        MissingExtra: the package is absent, or importing it fails for any reason.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a half-installed package may raise anything
        package = module.split(".")[0]
        found = "is not installed" if isinstance(error, ModuleNotFoundError) else f"is broken ({error})"
        raise MissingExtra(f"{purpose} needs {package}, which {found}; pip install 'pocketcnn[{extra}]'") from error
