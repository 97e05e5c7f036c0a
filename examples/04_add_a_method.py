# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add a method
# A method is a record: options, places where it can work, and layers to put there. This one stores half of each kernel and mirrors it:
# six weights instead of nine. It is registered from outside; a method of the package is a file in `methods/`, see CONTRIBUTING.md.

# %%
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.data import load
from pocketcnn.methods import METHODS, Method
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments
from pocketcnn.methods._sites import conv_sites
from pocketcnn.train import PRESETS, evaluate, fit


@dataclass(frozen=True)
class MirrorOptions:
    """Which way kernels are mirrored."""

    sign: int = 1
    """1: even kernels; -1: odd ones, whose middle column is 0."""

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise ValueError(f"sign must be 1 or -1, not {self.sign}")


class MirrorConv2d(AbstractConv2d):
    """A convolution whose kernels are mirror images of themselves."""

    condensed_by = "mirror"

    def __init__(self, *arguments, sign: int, bias: bool, device=None, dtype=None, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.sign = sign
        *shape, width = self.weight_shape
        self.stored = nn.Parameter(torch.empty(*shape, (width + 1) // 2, device=device, dtype=dtype))
        nn.init.kaiming_normal_(self.stored)
        self.bias = nn.Parameter(torch.zeros(self.out_channels, device=device, dtype=dtype)) if bias else None

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        other = self.sign * self.stored.flip(-1)
        if self.weight_shape[-1] % 2:
            middle = (self.stored[..., -1:] + other[..., :1]) / 2
            return torch.cat([self.stored[..., :-1], middle, other[..., 1:]], -1)
        return torch.cat([self.stored, other], -1)

    def generator_parameters(self) -> list[nn.Parameter]:
        return [self.stored]

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.pad(x)
        return F.conv2d(x, self.dense_weight(), self.bias, self.stride, padding, self.dilation, self.groups)


METHODS["mirror"] = Method(
    name="mirror",
    summary="every kernel is its own mirror image",
    source="this notebook",
    options=MirrorOptions,
    sites=lambda net, options: conv_sites(
        net, obstacle=lambda conv: "" if conv.kernel_size[1] > 1 else "a kernel of one column has no halves"
    ),
    build=lambda sites, options: {
        site.name: MirrorConv2d(**conv_arguments(site.module), sign=options.sign) for site in sites
    },
)

# %% [markdown]
# That was all. Plans, counts, files and training know it now.

# %%
net = pc.create_model("resnet20", in_channels=1, num_classes=10)
pc.plan(net, "mirror", input_size=(1, 8, 8))

# %%
logging.disable(logging.WARNING)
folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
small = pc.condense(net, "mirror")
data = load("digits")
fit(small, data, replace(PRESETS["demo"], epochs=4), folder / "run")
print(f"{100 * evaluate(small, data)['test_accuracy']:.1f} % of the test images")

# %% [markdown]
# **Saved and loaded** bit for bit, and turned back into ordinary convolutions.

# %%
size = pc.save(small, folder / "small.safetensors")
again = pc.load(folder / "small.safetensors")
x = torch.randn(2, 1, 8, 8)
dense = pc.materialize(again)
print(
    f"{size:,} bytes; equal after loading: {torch.equal(again(x), small.eval()(x))}, as convolutions: {torch.allclose(dense(x), again(x), atol=1e-5)}"
)
