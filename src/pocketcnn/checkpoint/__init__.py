"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net."""

from pocketcnn.checkpoint.file import fill_, load, save
from pocketcnn.checkpoint.header import FILE, FORMAT, VERSION, file_in, read_header, renote_

__all__ = ["FILE", "FORMAT", "VERSION", "file_in", "fill_", "load", "read_header", "renote_", "save"]
