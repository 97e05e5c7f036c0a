"""A passphrase that hides the seeds in the header of a model file."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pocketcnn.surgery import needs_seed

SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB and about a tenth of a second for each guess
_MEMORY = 1 << 29  # more than the settings that a header may have require
GUESSABLE = 1 << 32  # all smaller seeds can be tried in hours, without the passphrase


def hide_seeds(steps: Sequence[tuple[str, dict[str, Any]]], key: Mapping[str, Any], passphrase: str) -> None:
    """Hides the seeds of steps, or restores hidden ones: each seed is XORed with a number from the passphrase.

    Args:
        steps: method and options of the steps, then of the layers, in the order of the header; options are changed in place.
        key: the header's entry: the salt and the settings of scrypt.
        passphrase: the secret that the numbers are derived from.
    Raises:
        ValueError: the passphrase is empty, or no step has a seed that matters.
    """
    if not passphrase:
        raise ValueError("an empty passphrase protects nothing")
    seeded = [options for method, options in steps if needs_seed(method, options)]
    if not seeded:
        raise ValueError("a passphrase hides the seeds of rings and puppets; this net has none that matters")
    drawn = hashlib.scrypt(
        unicodedata.normalize("NFC", passphrase).encode(),
        salt=bytes.fromhex(key["salt"]),
        maxmem=_MEMORY,
        dklen=8 * len(seeded),
        **{name: key[name] for name in SCRYPT},
    )
    for number, options in enumerate(seeded):
        options["seed"] ^= int.from_bytes(drawn[8 * number : 8 * number + 8], "little")
