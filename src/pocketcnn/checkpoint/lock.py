"""Hiding the seeds in a file's header behind a passphrase."""

import hashlib
import unicodedata
from typing import Any

from pocketcnn.surgery import needs_seed

SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB and about a tenth of a second for each guess
_MEMORY = 1 << 28  # bytes that a file may ask for
GUESSABLE = 1 << 32  # smaller seeds are tried in hours, whatever the passphrase


def hide_seeds(header: dict[str, Any], passphrase: str) -> None:
    """Hides the seeds of a header's steps, or brings hidden ones back: the same numbers lie over them."""
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
