"""Labels that tell paths apart: the fewest parts of each path in which it differs from the others."""

from collections.abc import Sequence
from pathlib import Path


def labels_of(paths: Sequence[str | Path], *, dull: Sequence[str] = ()) -> list[str]:
    """Makes a short label for each path, different for different paths.

    A label is the last part of the path, and as many of the parts before it as are needed; parts that all paths share, between
    those that differ, are left out.

    Args:
        paths: files or folders.
        dull: names that say nothing, such as that of the model file in every run folder; left out if anything else is there.
    Example:
        >>> labels_of(["runs/plain/seed0", "runs/ring/seed0"])
        ['plain', 'ring']
        >>> labels_of(["runs/plain/seed0", "runs/ring/seed0", "runs/ring/seed1"])
        ['plain/seed0', 'ring/seed0', 'ring/seed1']
        >>> labels_of(["runs/ring/model.safetensors"], dull=["model.safetensors"])
        ['ring']
    """
    parts = [_parts(Path(path), dull) for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        ends = [part[-count:] for part in parts]
        if len(set(ends)) == len(set(parts)):
            break
    if len(set(parts)) < 2:
        return [part[-1] for part in parts]
    # Places, counted from the end, at which all paths have the same name.
    shared = {
        place for place in range(1, count + 1) if len({end[-place:][:1] for end in ends if len(end) >= place}) == 1
    }
    shared = {place for place in shared if all(len(end) >= place for end in ends)}
    return ["/".join(end[-place] for place in range(len(end), 0, -1) if place not in shared) for end in ends]


def _parts(path: Path, dull: Sequence[str]) -> tuple[str, ...]:
    """The parts of an absolute path, without the last one if it is dull."""
    names = path.absolute().parts
    return names[:-1] if len(names) > 1 and names[-1] in dull else names
