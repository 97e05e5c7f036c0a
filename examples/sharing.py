"""Common parts of `keypoints.py` and `multitask.py`: four ways to give kernels to repeated sub-networks, and records.

`plain(channels=...)` makes a net. Its sub-networks all have one shape, and a pattern such as `"stages.*"` matches their names.
Only kernels are shared: batch norm, stem and heads belong to one place in every mode.
"""

from statistics import mean, stdev

import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cost import count_params
from pocketcnn.support.environment import environment
from pocketcnn.support.files import make_folder, read_json, write_json

MODES = {
    "separate": "kernels of its own, narrower net",
    "reuse": "the kernels of one, used by all",
    "ring": "one ring, read by each in its own way",
    "unshared": "kernels of its own, full width",
}
SCHEMES = {"reuse": "identity", "ring": "random"}


def subnetworks(net, subnets):
    """Sub-networks of a net, in order."""
    return list(net.get_submodule(subnets.removesuffix(".*")).children())


def conv_numbers(module):
    """Number of weights in the kernels of a plain module."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d))


def narrower(plain, subnets, channels):
    """Number of channels at which an unshared net stores about as much as a sharing net of `channels`."""
    with torch.device("meta"):
        wide = plain(channels=channels)
        one, *others = subnetworks(wide, subnets)
        wanted = count_params(wide)[0] - len(others) * conv_numbers(one)
        return min(range(1, channels + 1), key=lambda width: abs(count_params(plain(channels=width))[0] - wanted))


def make(mode, plain, subnets, channels, seed):
    """Makes a fresh net of one of `MODES`; returns it and its number of channels.

    Both sharing modes store as many parameters as the kernels of one sub-network have. In `reuse` every sub-network reads
    them in the same order; in `ring` each has places and signs of its own.
    """
    torch.manual_seed(seed)
    if mode == "separate":
        channels = narrower(plain, subnets, channels)
    net = plain(channels=channels)
    if mode in SCHEMES:
        size = conv_numbers(subnetworks(net, subnets)[0])
        scheme = SCHEMES[mode]
        net = pc.condense(net, "ring", include=subnets, subnets=subnets, size=size, scheme=scheme, seed=seed)
    return net, channels


def recorded(folder, settings, work):
    """Reads the record of a finished run; otherwise calls `work() -> (net, result)` and writes its record and net.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    path = folder / "result.json"
    if path.exists():
        found = read_json(path)
        if found["settings"] != settings:
            raise ValueError(f"{path}: made with {found['settings']}, not {settings}; give another output folder")
        return found
    net, result = work()
    make_folder(folder)
    result = {
        **result,
        "settings": settings,
        "trainable_params": count_params(net)[0],
        "file_bytes": pc.save(net, folder / "model.safetensors"),
    }
    write_json(folder / "environment.json", environment())
    write_json(path, result)
    return result


def records(folder):
    """Records of the finished runs, by mode, in the order of the seeds."""
    found = {}
    for mode in MODES:
        paths = sorted((folder / mode).glob("seed*/result.json"), key=lambda path: int(path.parent.name[4:]))
        if paths:
            found[mode] = [read_json(path) for path in paths]
    return found


def spread(values, digits):
    """Mean ± standard deviation over seeds; for one seed, its value."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if values[1:] else "")


def table(folder, columns):
    """Table of the finished modes, as Markdown.

    Args:
        folder: the folder of the runs.
        columns: title -> (function from a result to its value, digits after the point). Cells show mean ± standard
            deviation over seeds.
    """
    titles = ["sub-networks have", "channels", "numbers", "file, bytes", *columns, "images/s", "seeds"]
    lines = [f"| {' | '.join(titles)} |", "|---" + (len(titles) - 1) * "|---:" + "|"]
    for mode, results in records(folder).items():
        first = results[0]
        measured = [spread([number(result) for result in results], digits) for number, digits in columns.values()]
        speed = mean(result["train_images_per_second"] for result in results)
        cells = [
            f"{MODES[mode]} (`{mode}`)", first["channels"], f"{first['trainable_params']:,}",
            f"{first['file_bytes']:,}", *measured, f"{speed:.0f}", len(results),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
