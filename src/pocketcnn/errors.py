"""Every exception of the package. Its message is one line: where, what was found, what was wanted, and what to do next.

A bad argument raises `ValueError`. The classes here name situations that a program may want to catch.
The command line prints them as `ClassName: message` and exits with `exit_code`.
"""

import difflib
from collections.abc import Iterable


class PocketError(Exception):
    """Base class of every exception here; catch it to handle them all."""

    exit_code = 2  # the input cannot be used; a run that fails by itself exits with 1


class AbstractUnknownName(PocketError, LookupError):
    """Base class for a name that is not in a list; the message suggests the nearest names and lists those known."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        guess = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
        listed = ", ".join(known) if len(known) <= 24 else ", ".join(known[:24]) + ", ..."
        super().__init__(f"no {self.kind} {name!r}{guess} Known: {listed}.{' ' + hint if hint else ''}")


class UnknownMethod(AbstractUnknownName):
    """Raised when no condensing method has the given name; use one that the message lists."""

    kind = "method"


class UnknownModel(AbstractUnknownName):
    """Raised when a name is neither a plain net, a recipe nor a model file; use a name that the message lists."""

    kind = "model"


class UnknownPretrained(AbstractUnknownName):
    """Raised when the package has no trained net of that name for that data set; use one that the message lists."""

    kind = "trained net"


class UnknownTable(AbstractUnknownName):
    """Raised when no published table of that name can be reproduced; use a name that the message lists."""

    kind = "table"


class UnknownData(AbstractUnknownName):
    """Raised when a name is no built-in data set, no folder and no hub data set within reach; correct the name."""

    kind = "data set"


class BadFactory(PocketError):
    """Raised when a function that should make a net cannot be found, raises an error or returns something else; correct the
    code or the name that the message gives."""


class WrongWeights(PocketError):
    """Raised when a file of weights does not fit the net; give the file of this net, or make the net that it belongs to."""


class UnsupportedLayer(PocketError):
    """Raised when a method cannot replace a layer it was asked to; leave out the layer that the message names."""


class UnsupportedNet(PocketError, ValueError):
    """Raised when a net cannot be copied or run as it is, because a part has no weights yet or cannot be copied; do what
    the message says about that part."""


class NothingToCondense(PocketError):
    """Raised when a method finds nothing to replace in the net; `plan` tells why it skipped each place."""


class UnstableStep(PocketError):
    """Raised when a solver's step is so long for a velocity known beforehand that its result would grow without bound;
    use a `dt` up to the one that the message gives."""


class CannotMaterialize(PocketError):
    """Raised when a layer's kernel depends on the image, so that no ordinary convolution equals it; run or export the
    net as it is."""


class CannotExport(PocketError):
    """Raised when a file format cannot hold the net; change the layer that the message names, or the format."""


class Disagreement(CannotExport):
    """Raised when an exported file computes other outputs than its net; nothing is written, so use another format."""


class ExportedFile(PocketError):
    """Raised when a file exported for serving is given where a trainable net is needed; give the model file that it was
    exported from."""


class NotEnoughMemory(PocketError):
    """Raised when a request takes more memory than there is; ask for no more than the message says would fit."""


class MissingExtra(PocketError, ImportError):
    """Raised when an optional package is missing or broken; install the extra that the message names."""


class MissingBase(PocketError):
    """Raised when a model file describes changes to a net that this package did not make; pass that net as `base`."""


class MissingPassphrase(PocketError):
    """Raised when a model file was saved with a passphrase and none is given; pass the passphrase."""


class BrokenFile(PocketError):
    """Raised when a model, checkpoint or record file is damaged or cut short; copy, save or train it again."""


class TamperedFile(BrokenFile):
    """Raised when a file's hash differs from the one on its card; install the package again."""


class NewerFormat(PocketError):
    """Raised when a newer version of this package wrote the file; upgrade pocketcnn."""


class ForeignFile(PocketError):
    """Raised when a well-formed file was not written by this package; give another file or folder."""


class BadData(PocketError):
    """Raised when a data set cannot be used as it is; change what the message names."""


class BadImage(BadData):
    """Raised when an image cannot be decoded or does not fit the others; repair, skip or convert it."""


class CannotWrite(PocketError):
    """Raised when a file or folder cannot be written; old files stay unchanged, so free space or give another path."""


class CannotReach(PocketError):
    """Raised when a hub repository does not exist or is closed to you, or the hub does not answer; check its name, your
    login and the network."""


class NonFiniteLoss(PocketError):
    """Raised when training produces a NaN or infinite loss; the last good checkpoint is kept, so lower `lr` or clip the
    gradients."""

    exit_code = 1


class Interrupted(PocketError):
    """Raised when the user stops a run; the last checkpoint is kept, so repeat the command to resume."""

    exit_code = 130


class Preempted(PocketError):
    """Raised when the machine asks a run to stop (SIGTERM); a checkpoint is saved, so repeat the command to resume."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class NothingFits(PocketError):
    """Raised when no candidate of a search meets its budgets; allow more, or search around a smaller net."""


class BadStorage(PocketError):
    """Raised when the database of a search cannot be opened; give a writable file or a running server."""


class WorkerDied(PocketError):
    """Raised when a process that reads data dies; look at the file that the message names, or use fewer workers."""

    exit_code = 1


class BadUsage(PocketError):
    """Raised when a command line cannot be understood; correct the flag or word that the message names."""
