"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net."""

from pocketcnn.checkpoint.file import check_savable, fill_from_, load, save
from pocketcnn.checkpoint.header import FILE, FORMAT, VERSION, file_in, read_header, replace_notes_
from pocketcnn.checkpoint.ledger import Ledger, ledger
from pocketcnn.checkpoint.sealed import read_head
from pocketcnn.checkpoint.weights import load_weights_

__all__ = [
    "FILE",
    "FORMAT",
    "VERSION",
    "Ledger",
    "check_savable",
    "file_in",
    "fill_from_",
    "ledger",
    "load",
    "load_weights_",
    "read_head",
    "read_header",
    "replace_notes_",
    "save",
]
