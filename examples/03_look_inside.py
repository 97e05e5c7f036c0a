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
# # Look inside
# What has a method put in the place of kernels? Three nets are trained on digits for a moment, and drawn. For nets of your own,
# `pocketcnn picture` draws the same, and `pocketcnn explore` writes a page on which you can touch them.

# %%
import dataclasses
import logging
import tempfile
from pathlib import Path

import torch

import pocketcnn as pc
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.data import load
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.methods.puppet import puppeteers_of
from pocketcnn.pictures import draw_fields, draw_kernels, draw_maps, draw_ring, solver_fields
from pocketcnn.train import PRESETS, fit

logging.disable(logging.WARNING)
folder = Path(tempfile.mkdtemp())
data = load("digits")
config = dataclasses.replace(PRESETS["demo"], epochs=4)
nets = {}
for method, options in {"ring": {"size": 0.1}, "puppet": {"depth": "fixed"}, "pde": {"num_steps": 5}}.items():
    torch.manual_seed(0)
    net = pc.condense(pc.create_model("resnet20", in_channels=1, num_classes=10), method, **options)
    fit(net, data, config, folder / method)
    nets[method] = net.eval()
pixels = data.test.images[:4]
x = ImageNotes.of(data).normalise(pixels)
{name: pc.measure(net, (1, 8, 8)).trainable_params for name, net in nets.items()}

# %% [markdown]
# **Feature maps** after each stage, of all three nets and the same images.

# %%
_ = draw_maps(pixels, nets, x)

# %% [markdown]
# **The ring**: which of its places each layer reads, and how often.

# %%
_ = draw_ring(nets["ring"])

# %% [markdown]
# **The puppet**: the state along its path. Every layer's kernels are read off it.

# %%
_ = draw_kernels(puppeteers_of(nets["puppet"])[0])

# %% [markdown]
# **The solver**: where it carries features to, how far it spreads them, and the map before and after.

# %%
first = next(name for name, layer in nets["pde"].named_modules() if isinstance(layer, GlobalLayer))
_ = draw_fields(pixels[0], solver_fields(nets["pde"], first, x))
