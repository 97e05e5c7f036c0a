"""Nets of timm and torchvision, and a trial of surgery on each; used by tests and by benchmarks/foreign_nets.py."""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pocketcnn as pc
from pocketcnn.errors import CannotMaterialize, NothingToCondense
from pocketcnn.numerics import image_entropy

CLASSES, BATCH = 7, 2
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # kept, as its schemas last only as long as the object


@dataclass(frozen=True)
class Net:
    """A net of another library, by its name there."""

    library: str
    name: str
    pixels: int = 32  # side of the smallest image that it takes
    slow: bool = False  # tried by the script only, not by the tests
    options: Any = None

    def make(self) -> nn.Module:
        """Makes the net, freshly initialised."""
        library = import_library(self.library)
        if self.library == "timm":
            return library.create_model(self.name, num_classes=CLASSES, **(self.options or {}))
        return library.models.get_model(self.name, weights=None, num_classes=CLASSES, **(self.options or {}))


NETS = {
    net.name: net
    for net in (
        Net("timm", "resnet18", slow=True),
        Net("timm", "resnet26d", slow=True),
        Net("timm", "resnext26ts", slow=True),
        Net("timm", "seresnet33ts", slow=True),
        Net("timm", "res2net50_26w_4s", slow=True),
        Net("timm", "resnest14d", slow=True),
        Net("timm", "regnetx_002"),
        Net("timm", "regnety_002"),
        Net("timm", "densenet121", slow=True),
        Net("timm", "vgg11_bn", slow=True, options={"features_only": True}),
        Net("timm", "mobilenetv2_035"),
        Net("timm", "mobilenetv3_small_050"),
        Net("timm", "mobilenetv4_conv_small_035"),
        Net("timm", "efficientnet_b0"),
        Net("timm", "tf_efficientnetv2_b0", slow=True),
        Net("timm", "tinynet_e"),
        Net("timm", "convnext_atto"),
        Net("timm", "convnextv2_atto"),
        Net("timm", "dla46x_c"),
        Net("timm", "darknet17", slow=True),
        Net("timm", "cspresnet50", slow=True),
        Net("timm", "ghostnet_050"),
        Net("timm", "hrnet_w18_small", slow=True),
        Net("timm", "repvgg_a0", slow=True),
        Net("timm", "repvit_m0_9", slow=True),
        Net("timm", "nf_resnet26"),
        Net("timm", "nf_regnet_b0", slow=True),
        Net("timm", "lcnet_035"),
        Net("timm", "starnet_s1"),
        Net("timm", "edgenext_xx_small"),
        Net("timm", "mobilevit_xxs"),
        Net("timm", "mobilevitv2_050"),
        Net("timm", "fasternet_t0"),
        Net("timm", "poolformer_s12", slow=True),
        Net("timm", "levit_128s", pixels=224),
        Net("timm", "vit_tiny_patch16_224", pixels=224),
        Net("timm", "swin_tiny_patch4_window7_224", pixels=224),
        Net("timm", "mixer_s32_224", pixels=224),
        Net("torchvision", "squeezenet1_1"),
        Net("torchvision", "shufflenet_v2_x0_5"),
        Net("torchvision", "mnasnet0_5"),
        Net("torchvision", "googlenet", slow=True, options={"init_weights": False}),
        Net("torchvision", "inception_v3", pixels=299, slow=True, options={"init_weights": False}),
        Net("torchvision", "lraspp_mobilenet_v3_large", options={"weights_backbone": None}),
    )
}


def import_library(name: str) -> Any:
    """Imports timm or torchvision as installed, or from the folder that the variable POCKETCNN_NETS names.

    If the compiled part of torchvision is missing or made for another torch, its import fails: the schemas of two
    operators are missing, which no net here calls. Beside such a torchvision other packages fail too, Lightning among
    them. It therefore lies in a folder of its own. Only this function searches that folder and defines these schemas.
    """
    if name == "timm":
        import_library("torchvision")  # timm imports it
    searched = list(sys.path)
    sys.path += filter(None, [os.environ.get("POCKETCNN_NETS")])
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module(name)
    finally:
        sys.path[:] = searched


def version(library: Any) -> str:
    """Version of a library, without the build."""
    return str(library.__version__).partition("+")[0]


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in a net's output: one, several, or several by name."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, Sequence) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def outcome(net: Net, method: str) -> dict[str, Any]:
    """Result of `trial`, or if it fails, the `failure` in one line."""
    try:
        return trial(net, method)
    except Exception as error:  # every failure belongs in the table
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def trial(net: Net, method: str) -> dict[str, Any]:
    """Tries a method on a net: plan, condense, forward and backward in training mode, forward in evaluation mode, save
    and load with `base`, materialize.

    Returns:
        `replaced` of `places`, the numbers of trainable parameters `before` and `after`, and `materialized`, which is
        true if an ordinary net equals the small one. If there is nothing to condense: `before` and the `reason`.
    Raises:
        AssertionError: a parameter that is used gets no gradient, or a loaded file is another net.
        Exception: any other failure.
    """
    torch.manual_seed(0)
    plain = net.make()
    plan = pc.plan(plain, method)
    if not plan.replaced:
        reasons = [row.reason for row in plan.rows] or [f"it has no {pc.METHODS[method].places[1]}"]
        with pytest.raises(NothingToCondense, match=re.escape(reasons[0])):
            pc.condense(plain, method)
        return {"before": plan.before, "reason": max(reasons, key=reasons.count)}
    small = pc.condense(plain, method).train()
    x = torch.rand(BATCH, 3, net.pixels, net.pixels)
    unused = _without_gradient(plain.train(), x)
    assert _without_gradient(small, x) <= unused
    small.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        outputs = tensors_of(small(x))
        path = Path(folder) / "small.safetensors"
        pc.save(small, path)
        again = pc.load(path, base=net.make())
        for one, other in zip(outputs, tensors_of(again(x)), strict=True):
            # Some untrained nets overflow with involutions, whose outputs are products of their inputs.
            assert torch.equal(one.nan_to_num(), other.nan_to_num()), "the loaded net differs from the saved one"
        assert [one.shape for one in outputs] == [one.shape for one in tensors_of(plain.eval()(x))]
        try:
            dense = pc.materialize(small)
        except CannotMaterialize:
            dense = None
            if any(getattr(module, "needs_entropy", False) for module in small.modules()):
                seen = pc.materialize(small, entropy=image_entropy(x[:1]).item())
                _close(seen(x[:1]), small(x[:1]))
        else:
            _close(dense(x), outputs)
    return {
        "replaced": len(plan.replaced),
        "places": len(plan.rows),
        "before": plan.before,
        "after": plan.after,
        "materialized": dense is not None,
    }


def _close(one: Any, other: Any) -> None:
    torch.testing.assert_close(tensors_of(one), tensors_of(other), rtol=1e-4, atol=1e-5)


def _without_gradient(net: nn.Module, x: Tensor) -> set[str]:
    """Names of the trainable parameters that get no gradient from any output of the net."""
    torch.stack([tensor.square().sum() for tensor in tensors_of(net(x))]).sum().backward()
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None}
