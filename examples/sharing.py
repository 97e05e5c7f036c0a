"""What `keypoints.py` and `multitask.py` have in common: how repeated sub-networks come by their kernels, and records.

A net is made by `plain(channels=...)` and holds its sub-networks, all of one shape, under names that a pattern such as
`"stages.*"` matches. Only kernels are shared: batch norm, stem and heads belong to one place in every mode.
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
    """The sub-networks of a net, in order."""
    return list(net.get_submodule(subnets.removesuffix(".*")).children())


def conv_numbers(module):
    """How many numbers the kernels of a plain module have."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d))


def narrower(plain, subnets, channels):
    """The channels at which a net with kernels of its own stores about as much as a sharing one of `channels`."""
    with torch.device("meta"):
        wide = plain(channels=channels)
        one, *others = subnetworks(wide, subnets)
        wanted = count_params(wide)[0] - len(others) * conv_numbers(one)
        return min(range(1, channels + 1), key=lambda width: abs(count_params(plain(channels=width))[0] - wanted))


def make(mode, plain, subnets, channels, seed):
    """A fresh net of one of `MODES`, and the channels it has.

    Both sharing modes store as many numbers as the kernels of one sub-network have. In `reuse` every sub-network reads
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
    """The record of a finished run, or else that of `work() -> (net, result)`, which is then written with its net.

    Raises:
        ValueError: the folder holds a run of other settings.
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
    """The records of the modes that have run, by mode, in the order of the seeds."""
    found = {}
    for mode in MODES:
        paths = sorted((folder / mode).glob("seed*/result.json"), key=lambda path: int(path.parent.name[4:]))
        if paths:
            found[mode] = [read_json(path) for path in paths]
    return found


def spread(values, digits):
    """Mean ± standard deviation over seeds; of one seed, what it is."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if values[1:] else "")


def table(folder, columns):
    """The modes that have run, as Markdown.

    Args:
        folder: where they were written.
        columns: title -> (number of a result, digits after the point); given as mean ± standard deviation over seeds.
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
