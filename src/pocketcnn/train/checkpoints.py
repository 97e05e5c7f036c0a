"""Lightning checkpoints: written atomically, checked by a digest, the previous one kept."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from pocketcnn.errors import BrokenFile
from pocketcnn.support.files import write_atomically
from pocketcnn.support.runs import LAST, PREVIOUS
from pocketcnn.train.engine import TorchCheckpointIO

_log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are whole or absent, hold only tensors and numbers, and end with a hash of their content.

    The last checkpoint but one is kept as `previous.ckpt`. `torch.load` reads these files too: it ignores the hash.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        path = Path(path)
        write_atomically(path, content + hashlib.sha256(content).digest(), keep=path.with_name(PREVIOUS))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            written = Path(path).read_bytes()
            content, digest = written[:-_DIGEST], written[-_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("cut short or changed since it was written")
            return torch.load(io.BytesIO(content), map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises errors of many kinds
            raise BrokenFile(f"{path}: damaged checkpoint ({error}); delete it to start this run afresh") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Finds the last undamaged checkpoint of a run; None if there is none.

    If the last checkpoint is damaged, a warning is logged and the previous one is used.

    Raises:
        BrokenFile: all checkpoints there are damaged.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := folder / name).exists()]
    errors = []
    for path in found:
        try:
            kept = AtomicCheckpointIO().load_checkpoint(path)
        except BrokenFile as error:
            errors.append(error)
            continue
        if errors:
            _log.warning("%s; resuming from %s, epoch %d", errors[0], path.name, kept["epoch"] + 1)
        return path
    if errors:
        raise errors[0]
    return None
