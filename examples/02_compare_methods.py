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
# # Compare methods on your images
# A comparison trains every net alike, beside the plain net, and beside the plain net that is as small. Here: digits, four epochs, one
# seed. For figures to rely on, take more of both.

# %%
import dataclasses
import logging
import tempfile
from pathlib import Path

import pocketcnn as pc
from pocketcnn.data import load
from pocketcnn.report import markdown, summarize
from pocketcnn.train import PRESETS

logging.disable(logging.WARNING)
folder = Path(tempfile.mkdtemp()) / "compared"
data = load("digits")
sizes = {"in_channels": 1, "num_classes": 10}
nets = pc.compare.net_specs(["resnet20"], ["plain", "ring:size=0.1", "involution"], sizes, equal_size=True)
[net.label for net in nets]

# %%
config = dataclasses.replace(PRESETS["demo"], epochs=4)
outcome = pc.compare.compare(data, nets, config, folder, seeds=1)
print(markdown(summarize(outcome.results, outcome.speeds)))

# %% [markdown]
# The same on the command line, with figures and a page `report.html`:
#
#     pocketcnn compare --data digits --models resnet20 --methods plain ring:size=0.1 involution --equal-size --preset demo
