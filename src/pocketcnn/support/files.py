"""Writing files so that a reader sees the old one or the new one, never half of either."""

import json
import os
from pathlib import Path
from typing import Any

from pocketcnn.errors import BrokenFile, CannotWrite, ExportedFile

EXPORTED = (".onnx", ".pte", ".pt2")
"""How the names of files end that are exported for serving."""


def refuse_exported(path: str | Path) -> None:
    """Checks that a file which should hold a net is not one that was exported.

    Raises:
        ExportedFile: by its name it is.
    """
    if Path(path).suffix in EXPORTED:
        raise ExportedFile(
            f"{path}: an exported file is for serving, its net can be neither trained nor changed; give the "
            ".safetensors file that it was exported from"
        )


def make_folder(path: Path) -> Path:
    """Makes a folder with its parents and checks that files can be made in it.

    Raises:
        CannotWrite: it cannot be made, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotWrite(
            f"{path}: cannot write there ({error.strerror or error}); give another folder with --output"
        ) from error
    return path


def write_atomically(path: Path, content: bytes | str, *, keep: Path | None = None) -> None:
    """Writes a file by a temporary one beside it: written, flushed to disk, then renamed over the old.

    Args:
        path: of the file.
        content: all of it.
        keep: the name that the old file gets, in the same folder; it goes by default.

    Raises:
        CannotWrite: the disk is full or the place is not writable; the old file is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = "the file that was there is unchanged" if path.exists() else "nothing was written"
        raise CannotWrite(
            f"{path}: writing {len(data):,} bytes failed ({error.strerror or error}); {kept}; "
            "free some space or give another path"
        ) from error


def remove_partials(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder; only for a folder with no writer at work."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        BrokenFile: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BrokenFile(f"{path}: not readable as JSON ({error}); delete it to start that run afresh") from error
