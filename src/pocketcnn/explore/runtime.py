"""ONNX Runtime Web for a page: read from the network when the page opens, or carried by the page.

The version and the hashes of its two files are fixed, so that a page runs what it was tested with.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketcnn.data.cache import cache_folder
from pocketcnn.errors import BadUsage, BrokenFile
from pocketcnn.support.files import write_atomically
from pocketcnn.support.timing import first_line

VERSION = "1.30.0"
PACKAGE = "onnxruntime-web"
FILES: Mapping[str, tuple[str, str]] = {
    "script": ("ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    "wasm": ("ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}
"""Each part of the runtime: its file in the folder `dist` of the package, and its hash as browsers check it."""
ADDRESS = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist/"
_MOST = 64 << 20  # bytes of a file
_OBTAIN = f"npm pack {PACKAGE}@{VERSION} && tar xf {PACKAGE}-{VERSION}.tgz, then --runtime package"


def described(runtime: str) -> dict[str, Any]:
    """What the page is told about a runtime: `"cdn"`, `"inline"` or a folder, which is carried by the page too."""
    if runtime != "cdn":
        return {"kind": "inline"}
    return {
        "kind": "cdn",
        **{part: {"url": f"{ADDRESS}{name}", "integrity": hash} for part, (name, hash) in FILES.items()},
    }


def contents(runtime: str) -> dict[str, bytes]:
    """The files that the page carries, by part; none for `"cdn"`.

    Args:
        runtime: `"cdn"`; `"inline"`, which fetches the package once and keeps it in the cache; or the folder of the npm
            package, or its folder `dist`.
    Raises:
        BadUsage: the folder lacks a file, or holds another version; or the package cannot be fetched.
    """
    if runtime == "cdn":
        return {}
    return _in_folder(_fetched() if runtime == "inline" else Path(runtime))


def _in_folder(folder: Path) -> dict[str, bytes]:
    found = {}
    for part, (name, wanted) in FILES.items():
        path = next((path for path in (folder / name, folder / "dist" / name) if path.is_file()), None)
        if path is None:
            raise BadUsage(f"{folder}: no {name} in this folder; get it by {_OBTAIN}")
        content = path.read_bytes() if path.stat().st_size <= _MOST else b""
        if integrity(content) != wanted:
            raise BadUsage(f"{path}: not that of {PACKAGE} {VERSION}, which pages are tested with; get it by {_OBTAIN}")
        found[part] = content
    return found


def integrity(content: bytes) -> str:
    """The hash of a file as browsers write it.

    Example:
        >>> integrity(b"")[:20]
        'sha384-OLBgp1GsljhM2'
    """
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"


def _fetched() -> Path:
    """The folder of the cache that holds the runtime; it is fetched by npm, or without npm from the network address."""
    folder = cache_folder() / f"{PACKAGE}-{VERSION}"
    if not all((folder / name).is_file() for name, _ in FILES.values()):
        with tempfile.TemporaryDirectory() as place:
            try:
                made = _packed(Path(place)) if shutil.which("npm") else _downloaded()
            except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
                raise BadUsage(
                    f"{PACKAGE} {VERSION} cannot be fetched ({first_line(error)}); get it by {_OBTAIN}"
                ) from error
        folder.mkdir(parents=True, exist_ok=True)
        for part, (name, wanted) in FILES.items():
            if integrity(made[part]) != wanted:
                raise BrokenFile(f"{name}: the network gave another file than {PACKAGE} {VERSION} holds; try again")
            write_atomically(folder / name, made[part])
    return folder


def _packed(place: Path) -> dict[str, bytes]:
    """Fetches the package by npm, which knows the user's registry."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(place)]
    subprocess.run(command, check=True, capture_output=True, timeout=600, env={**os.environ, "npm_config_update_notifier": "false"})  # fmt: skip
    with tarfile.open(next(place.glob("*.tgz"))) as archive:
        return {part: archive.extractfile(f"package/dist/{name}").read(_MOST) for part, (name, _) in FILES.items()}  # type: ignore[union-attr]


def _downloaded() -> dict[str, bytes]:
    found = {}
    for part, facts in ((part, described("cdn")[part]) for part in FILES):
        with urllib.request.urlopen(facts["url"], timeout=60) as answer:
            found[part] = answer.read(_MOST)
    return found
