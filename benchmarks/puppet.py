"""Times puppet nets: the saving of depth by entropy on real batches, the cost of cached kernels, the cost of generation.

    python benchmarks/puppet.py [--data cifar10] [--model resnet32_4stage] [--batch 64]

Both sides of a comparison run in turns; times are medians. The nets are not trained, because weights do not change the time.
"""

import argparse
import time
from statistics import median

import torch
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.data import load
from pocketcnn.methods.puppet import PuppetStage, gauge_of, puppeteers_of
from pocketcnn.train.images import calibrate

ROUNDS = 15


def in_turns(sides, rounds=ROUNDS):
    """Median seconds of each call; the calls run one after the other, round by round."""
    taken = {name: [] for name in sides}
    for _ in range(rounds + 2):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: median(times[2:]) for name, times in taken.items()}


def served(net, x):
    """Returns a call that runs the net without gradients."""

    def call():
        with torch.inference_mode():
            net(x)

    return call


def cached_kernels(plain, x):
    """Times a net of whole depth with cached kernels against the ordinary net it equals."""
    net = pc.condense(plain, "puppet", depth="fixed").eval()
    print(f"\n{len(x)} images, whole depth, float32: cached kernels against ordinary ones\n")
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        sides = {}
        for side, model in (("cached", net), ("ordinary", pc.materialize(net))):
            sides[side] = served(model.to(memory_format=layout), x.contiguous(memory_format=layout))
        times = in_turns(sides)
        cached, ordinary = (1e3 * times[side] for side in ("cached", "ordinary"))
        print(f"{name:<14}cached {cached:.1f} ms, ordinary {ordinary:.1f} ms: {cached / ordinary:.2f}x")


def depth_against_time(net, x):
    """Times one level at a time, measuring the images included, against the ordinary net that the level equals."""
    gauge = gauge_of(net)
    print(f"\n{len(x)} images of one level, float32\n")
    print(f"{'level':>6}{'blocks':>8}{'MACs an image':>15}{'puppet ms':>11}{'ordinary ms':>13}{'ratio':>7}")
    for level in range(gauge.levels):
        # The entropy in the middle of the level, which `materialize` needs.
        values = torch.linspace(0, gauge.quantiles[-1].item(), 4001)
        value = values[gauge.level_of(gauge.share_of(values)) == level].median().item()
        dense = pc.materialize(net, entropy=value)

        def pinned(level=level):
            with gauge.pinned(level), torch.inference_mode():
                net(x)

        times = in_turns({"puppet": pinned, "ordinary": served(dense, x)})
        blocks = sum(m.depth_of(level) for m in net.modules() if isinstance(m, PuppetStage))
        macs = pc.measure(dense, tuple(x.shape[1:])).macs
        mine, theirs = (1e3 * times[name] for name in ("puppet", "ordinary"))
        print(f"{level:>6}{blocks:>8}{macs:>15,}{mine:>11.1f}{theirs:>13.1f}{mine / theirs:>7.2f}")


def mixed_batches(net, plain, x, batch):
    """Times real batches of mixed depth, the gauge's measuring included, against the whole net."""
    gauge = gauge_of(net)
    batches = x.split(batch)

    def whole():
        with torch.inference_mode():
            for batch in batches:
                plain(batch)

    def mixed():
        with torch.inference_mode():
            for batch in batches:
                net(batch)

    def look():
        with torch.inference_mode():
            for batch in batches:
                gauge.levels_of(batch)

    times = in_turns({"mixed": mixed, "whole": whole, "look": look}, rounds=7)
    levels = gauge.levels_of(x).bincount(minlength=gauge.levels)
    mixed_ms, whole_ms, look_ms = (1e3 * times[name] / len(batches) for name in ("mixed", "whole", "look"))
    macs = []
    for level in range(gauge.levels):
        with gauge.pinned(level):
            macs.append(pc.measure(net, tuple(x.shape[1:])).macs)
    share = sum(m * n for m, n in zip(macs, levels.tolist(), strict=True)) / len(x) / macs[-1]
    print(f"\n{len(batches)} real batches of {len(batches[0])}, images at levels {levels.tolist()}\n")
    print(
        f"mixed depth {mixed_ms:.1f} ms, whole net {whole_ms:.1f} ms: {mixed_ms / whole_ms:.2f}x for {share:.2f}x of the MACs"
    )
    print(f"of which measuring the images takes {look_ms:.2f} ms")


def generation(model, x, mean, std, options):
    """Times a training step with generated and with ordinary kernels; the difference is the cost of generating."""
    labels = torch.arange(len(x)) % 10
    print(f"\na training step of {len(x)} images\n")
    print(f"{'':<34}{'generated ms':>13}{'ordinary ms':>13}{'share':>7}")
    for name, more in (
        ("whole depth", {"depth": "fixed"}),
        ("whole depth, rk4", {"depth": "fixed", "solver": "rk4"}),
        ("depth by entropy", {}),
        ("depth by entropy, one start a level", {"start": "entropy"}),
    ):
        sides = {}
        for side, generator in (("generated", "ode"), ("ordinary", "stored")):
            torch.manual_seed(0)
            given = {**more, "generator": generator}
            net = pc.condense(pc.create_model(model, **options), "puppet", **given).to(
                memory_format=torch.channels_last
            )
            if gauge_of(net) is not None:
                gauge_of(net).calibrate_([x], mean=mean, std=std)

            def step(net=net):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(net(x).float(), labels)
                loss.backward()
                net.zero_grad()

            sides[side] = step
        times = in_turns(sides, rounds=7)
        mine, theirs = (1e3 * times[side] for side in ("generated", "ordinary"))
        print(f"{name:<34}{mine:>13.1f}{theirs:>13.1f}{(mine - theirs) / mine:>7.1%}")
    puppeteer = puppeteers_of(pc.condense(pc.create_model(model, **options), "puppet"))[0]
    alone = in_turns({"made": lambda: puppeteer.kernels(0)})["made"]
    print(f"all {len(puppeteer.slots)} kernels once, without a backward pass: {1e3 * alone:.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data set, as for pocketcnn train")
    parser.add_argument("--model", default="resnet32_4stage", help="name of a plain net")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    given = parser.parse_args()
    torch.manual_seed(0)
    data = load(given.data)
    options = {"in_channels": data.input_size[0], "num_classes": len(data.classes)}
    plain = pc.create_model(given.model, **options)
    net = pc.condense(plain, "puppet").eval()
    plain.eval()
    calibrate(net, data)
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    x = (data.test.images[: 20 * given.batch].float() / 255 - mean) / std
    print(f"{given.model} on {data.name}, {torch.get_num_threads()} threads")
    cached_kernels(plain, x[: given.batch])
    depth_against_time(net, x[: given.batch])
    mixed_batches(net, plain, x, given.batch)
    generation(given.model, x[:128].contiguous(memory_format=torch.channels_last), data.mean, data.std, options)


if __name__ == "__main__":
    main()
