"""A passphrase that hides the seeds in the header of a model file."""

import hashlib
import unicodedata
from typing import Any

from pocketcnn.surgery import needs_seed

SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB and about a tenth of a second for each guess
_MEMORY = 1 << 28  # the most bytes that a file's settings may require
GUESSABLE = 1 << 32  # all smaller seeds can be tried in hours, without the passphrase


def hide_seeds(header: dict[str, Any], passphrase: str) -> None:
    """Hides the seeds of a header's steps, or restores hidden ones: each seed is XORed with a number from the passphrase.

    Args:
        header: of a model file, with the salt and the settings of scrypt as its `key`; changed in place.
        passphrase: the secret that the numbers are derived from.
    Raises:
        ValueError: the passphrase is empty, or no step has a seed that matters.
    """
    if not passphrase:
        raise ValueError("an empty passphrase protects nothing")
    seeded = [step["options"] for step in header["steps"] if needs_seed(step["method"], step["options"])]
    if not seeded:
        raise ValueError("a passphrase hides the seeds of rings and puppets; this net has none that matters")
    key = header["key"]
    settings = {name: int(key[name]) for name in SCRYPT}
    drawn = hashlib.scrypt(
        unicodedata.normalize("NFC", passphrase).encode(),
        salt=bytes.fromhex(key["salt"]),
        maxmem=_MEMORY,
        dklen=8 * len(seeded),
        **settings,
    )
    for number, options in enumerate(seeded):
        options["seed"] ^= int.from_bytes(drawn[8 * number : 8 * number + 8], "little")
