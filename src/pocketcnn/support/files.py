"""Reading and writing of files. A reader sees the old file or the new one, never a part of either."""

import json
import os
from pathlib import Path
from typing import Any

from pocketcnn.errors import BrokenFile, CannotWrite, ExportedFile, ForeignFile

EXPORTED = (".onnx", ".pte", ".pt2")
"""Suffixes of files that are exported for serving."""


def refuse_exported(path: str | Path) -> None:
    """Checks by its suffix that a file which should hold a net was not exported for serving.

    Raises:
        ExportedFile: the file was exported.
    """
    if Path(path).suffix in EXPORTED:
        raise ExportedFile(
            f"{path}: an exported file is for serving, its net can be neither trained nor changed; give the "
            ".safetensors file that it was exported from"
        )


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents, and checks that files can be written in it.

    Raises:
        CannotWrite: the folder cannot be made, or no file can be written in it.
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
    """Writes a temporary file beside the target, flushes it to disk, and renames it over the target.

    Args:
        path: path of the file.
        content: its whole content.
        keep: path in the same folder to which the old file is renamed; by default the old file is replaced.

    Raises:
        CannotWrite: the disk is full or the folder is not writable; the old file is unchanged.
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
    """Removes the temporary files that killed writers left in a folder. No writer may be at work in it."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        BrokenFile: the file is not JSON.
        ForeignFile: it is not a plain file.
    """
    if path.exists() and not path.is_file():
        raise ForeignFile(f"{path}: not a plain file; move it away")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path}: not readable as JSON ({error}); restore or delete it") from error
