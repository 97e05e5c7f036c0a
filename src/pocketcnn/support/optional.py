"""Imports of optional packages, with one error for missing and broken packages."""

import importlib
from types import ModuleType

from pocketcnn.errors import MissingExtra


def optional_import(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports `module`; if that fails, the error names the extra that installs it.

    Args:
        module: dotted module name.
        extra: the extra of this package that installs the module.
        purpose: the activity that needs the module, as the subject of a sentence: "training".
    Raises:
        MissingExtra: the package is absent, or importing it fails for any reason.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a half-installed package may raise anything
        package = module.split(".")[0]
        found = "is not installed" if isinstance(error, ModuleNotFoundError) else f"is broken ({error})"
        raise MissingExtra(f"{purpose} needs {package}, which {found}; pip install 'pocketcnn[{extra}]'") from error
