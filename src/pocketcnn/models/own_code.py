"""Code of the user's own that makes a net: a function in a file or a module, named on the command line or in a call."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from torch import nn

from pocketcnn.errors import BadFactory
from pocketcnn.support.timing import first_line


def imported(name: str) -> Callable[..., nn.Module]:
    """Imports the file or module that a name begins with, and returns the function that it ends with.

    Raises:
        BadFactory: there is no such file, module or function, or importing it fails.
    """
    place, _, factory = name.rpartition(":")
    is_file = place.endswith(".py")
    try:
        module = _module_of_file(Path(place)) if is_file else _module(place)
    except Exception as error:
        lacking = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")
        if not Path(place).is_file() if is_file else lacking:
            what = "file" if is_file else "module"
            raise BadFactory(f"{name}: there is no {what} {place}; check its path, or name a net of models") from error
        raise BadFactory(f"{name}: importing {place} failed ({in_one_line(error)})") from error
    found = getattr(module, factory, None)
    if found is None:
        own = [
            key
            for key, value in vars(module).items()
            if (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        ]
        raise BadFactory(f"{name}: {place} has no {factory!r}; it has: {', '.join(own) or 'no functions'}")
    if isinstance(found, nn.Module) or not callable(found):
        raise BadFactory(f"{name}: is a {type(found).__name__}; name a function or class that makes a net")
    return found


def _module(name: str) -> ModuleType:
    """Imports a module; those in the working folder are found too, as by `python -m`."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _module_of_file(path: Path) -> ModuleType:
    """Imports a file; it finds those beside it, as a script does."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    if (beside := str(path.parent)) not in sys.path:
        sys.path.append(beside)
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    module = ModuleType(name)
    module.__file__, module.__loader__ = str(path), loader
    sys.modules[name] = module  # before its code runs, because dataclasses look there
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def in_one_line(error: Exception) -> str:
    """Says what an error in a user's code was, and the line of the code that it came through last."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(("<", str(Path(__file__).parents[1]))):
            place = f", {file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{first_line(error)}{place}"
