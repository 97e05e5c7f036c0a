"""Every exception of the package: what was found, what was wanted, and what to do next, in one line.

A bad argument is a `ValueError`, raised where it is given; the classes here name situations a program may want to
catch. The command line prints them as `ClassName: message` and leaves with `exit_code`.
"""

import difflib
from collections.abc import Iterable


class PocketError(Exception):
    """The root of every situation named here."""

    exit_code = 2  # what the user gave cannot be used; a run that failed on its own uses 1


class AbstractUnknownName(PocketError, LookupError):
    """A name that is not in a list; the message offers the nearest ones."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        guess = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
        listed = ", ".join(known) if len(known) <= 24 else ", ".join(known[:24]) + ", ..."
        super().__init__(f"no {self.kind} {name!r}{guess} Known: {listed}.{' ' + hint if hint else ''}")


class UnknownMethod(AbstractUnknownName):
    """No condensing method of that name."""

    kind = "method"


class UnknownModel(AbstractUnknownName):
    """No plain net or recipe of that name, and no model file either."""

    kind = "model"


class UnknownPretrained(AbstractUnknownName):
    """The package holds no trained net of that name for that data set."""

    kind = "trained net"


class UnknownTable(AbstractUnknownName):
    """No published table of that name can be reproduced."""

    kind = "table"


class UnknownData(AbstractUnknownName):
    """No built-in data set of that name, no folder, and no hub data set that could be reached."""

    kind = "data set"


class UnsupportedLayer(PocketError):
    """A layer was asked to be replaced by a method that cannot stand for it."""


class NothingToCondense(PocketError):
    """The method found no place to work in the net."""


class UnstableStep(PocketError):
    """A solver's step is too long for a velocity that is known beforehand; the result would grow without bound."""


class CannotMaterialize(PocketError):
    """The net holds layers whose kernels depend on the image: no ordinary convolution equals them."""


class CannotExport(PocketError):
    """A net that the format asked for cannot hold; the message names the layer where it can."""


class Disagreement(CannotExport):
    """What an exported file computes differs from what the net computes; the file was not written."""


class ExportedFile(PocketError):
    """A file that was exported for serving, where a net that can be trained is asked for."""


class NotEnoughMemory(PocketError):
    """What was asked for takes more memory than there is."""


class MissingExtra(PocketError, ImportError):
    """An optional package is missing or broken."""


class MissingBase(PocketError):
    """A model file describes changes to a net this package did not make; the net itself must be given."""


class MissingPassphrase(PocketError):
    """A model file was saved with a passphrase, which must be given to load it."""


class BrokenFile(PocketError):
    """A file that should be a model, a checkpoint or a record is damaged or cut short."""


class TamperedFile(BrokenFile):
    """A file is not the one its card describes: its hash differs."""


class NewerFormat(PocketError):
    """A file was written by a newer version of this package."""


class ForeignFile(PocketError):
    """A well-formed file that this package did not write."""


class BadData(PocketError):
    """A data set that cannot be trained on as it is."""


class BadImage(BadData):
    """An image that cannot be decoded, or does not fit the others."""


class CannotWrite(PocketError):
    """A folder or file could not be written; what was there before is unchanged."""


class CannotReach(PocketError):
    """A repository of the hub is not there, may not be read or written, or the hub does not answer."""


class NonFiniteLoss(PocketError):
    """Training produced a NaN or infinite loss; the last good checkpoint is kept."""

    exit_code = 1


class Interrupted(PocketError):
    """The user stopped a run; the last checkpoint is kept."""

    exit_code = 130


class Preempted(PocketError):
    """The machine asked a run to leave (SIGTERM); it is saved and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class NothingFits(PocketError):
    """No candidate of a search met its budgets."""


class BadStorage(PocketError):
    """The storage of a search cannot be opened."""


class WorkerDied(PocketError):
    """A process that reads data died; the message names what it was reading."""

    exit_code = 1


class BadUsage(PocketError):
    """A command line that cannot be understood."""
