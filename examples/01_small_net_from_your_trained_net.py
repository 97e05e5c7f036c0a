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
# # A small net from your trained net
# You have a trained net and a budget of bytes. This notebook trains a narrow resnet20 on digits, so that it has one, and then brings
# it below 20,000 bytes. On your own net start at the second cell: any `nn.Module` will do.

# %%
import logging
import tempfile
from pathlib import Path

import torch

import pocketcnn as pc
from pocketcnn.data import load
from pocketcnn.train import PRESETS, evaluate, fit

logging.disable(logging.WARNING)
folder = Path(tempfile.mkdtemp())
data = load("digits")
torch.manual_seed(0)
net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.5)
fit(net, data, PRESETS["demo"], folder / "trained")
print(f"{100 * evaluate(net, data)['test_accuracy']:.1f} % of the test images")

# %% [markdown]
# **What could be done?** A plan says what a method would replace, what it would leave alone, and why. It changes nothing.

# %%
pc.plan(net, "ring", size=0.1, input_size=(1, 8, 8))

# %% [markdown]
# **Which layers suffer?** Each layer is condensed alone, and the outputs are compared.

# %%
images = (data.train.images[:300].float() / 255 - data.mean[0]) / data.std[0]
found = pc.sensitivity(net, "ring", images, size=0.1, include="layer3.*")
print(found)

# %% [markdown]
# **Do it.** `shrink` tries what fits into the budget, trains the best for as long as you allow, and measures the file it wrote. With
# `sensitive=True`, the default, it also tries to leave the layers that suffer most as they are.

# %%
shrunk = pc.shrink(net, data, max_bytes="20k", minutes=0.1, sensitive=False, output=folder / "small", onnx=False)
print(shrunk)

# %%
small = pc.load(shrunk.path)
print(f"{shrunk.path.stat().st_size:,} bytes, {100 * evaluate(small, data)['test_accuracy']:.1f} % of the test images")
