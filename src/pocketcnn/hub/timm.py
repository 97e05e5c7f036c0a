"""Our nets in timm's registry, for training and serving with timm.

    import timm
    from pocketcnn import timm_models

    timm_models.register()
    net = timm.create_model("pocketcnn_resnet20", num_classes=10)
    trained = timm.create_model("pocketcnn_resnet20.cifar10", pretrained=True)

Nothing else in this package imports timm, so that it stays optional; that is why registering is a call.
"""

import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import nn

from pocketcnn import checkpoint, zoo
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import weights_of
from pocketcnn.errors import UnknownPretrained
from pocketcnn.models.recipes import create_model, list_models
from pocketcnn.support.optional import optional_import
from pocketcnn.surgery import Step, rebuild, record_of, remember

__all__ = ["PREFIX", "register"]
PREFIX = "pocketcnn_"
_log = logging.getLogger(__name__)
default_cfgs: dict[str, Any] = {}  # timm's decorator looks here for the configurations of a net


def register() -> list[str]:
    """Puts every net of `pocketcnn.list_models()` and every trained net of the package into timm's registry.

    Names get the prefix `pocketcnn_`, so that they hide none of timm's. Trained weights are tags, one for each data set:
    `"pocketcnn_resnet20.cifar10"`. `timm.create_model` takes `in_chans`, `num_classes` and the net's own options: `width`,
    `stem`, and for a recipe those of its method. With `pretrained=True`, a `num_classes` other than the trained one gives
    the net a new classifier. The nets are made by this package: they can be condensed, and saved and loaded without a
    `base`.

    Returns:
        The names, sorted as timm sorts them.
    Raises:
        MissingExtra: timm is not installed, or is broken.
    """
    timm = optional_import("timm.models", extra="timm", purpose="timm's registry")
    for name in dict.fromkeys((*list_models(), *(card.name for card in zoo.cards()))):
        if not timm.is_model(PREFIX + name):
            configurations = _configurations(name, timm.PretrainedCfg)
            if configurations:
                default_cfgs[PREFIX + name] = timm.DefaultCfg(deque(configurations), configurations, is_pretrained=True)
            timm.register_model(_entry(name))
    del __all__[2:]  # timm has added the names of the nets, which this module does not define
    return timm.list_models(f"{PREFIX}*")


def _configurations(name: str, kind: Any) -> dict[str, Any]:
    """timm's configurations of the trained weights of a net, by their tags."""
    found = {}
    for card in zoo.cards():
        if card.name == name:
            path = zoo.FOLDER / card.file
            notes = ImageNotes.read(path)
            found[card.data] = kind(
                file=str(path),
                input_size=notes.input_size,
                mean=notes.mean,
                std=notes.std,
                num_classes=len(notes.classes),
                label_names=notes.classes,
                crop_pct=1.0,
                classifier="fc",
            )
    return found


def _entry(name: str) -> Callable[..., nn.Module]:
    """Makes the function that timm calls to make a net; its name is the net's name in timm."""

    def make(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        in_chans: int | None = None,
        num_classes: int | None = None,
        **options: Any,
    ) -> nn.Module:
        if num_classes == 0:
            raise ValueError(
                f"{PREFIX}{name}: num_classes=0 asks for a net without classifier, and all of ours have one; leave num_classes out"
            )
        if pretrained_cfg_overlay or not isinstance(pretrained_cfg, str | None):
            raise ValueError(
                f"{PREFIX}{name}: the weights are those of the package; leave out the configuration of others"
            )
        if options.get("drop_rate") == 0:  # timm's own training script always passes it
            del options["drop_rate"]
        if in_chans is not None:
            options["in_channels"] = in_chans
        configurations = getattr(default_cfgs.get(PREFIX + name), "cfgs", {})
        tag = pretrained_cfg or next(iter(configurations), "")
        if tag:
            zoo.find(name, tag)
        if pretrained:
            if not tag:
                raise UnknownPretrained(name, [card.name for card in zoo.cards()])
            net = zoo.create_model(name, pretrained=tag, **options)
            if num_classes is not None:
                _set_classes(net, num_classes)
        else:
            net = _fresh(name, {**options, **({} if num_classes is None else {"num_classes": num_classes})})
        classifier: Any = net.fc
        known = dataclasses.asdict(configurations[tag]) if tag else {}
        if known:
            channels, *size = known["input_size"]
            wanted = options.get("in_channels", channels)
            if wanted != channels:  # timm adapts its own configurations in the same way
                moments = {key: (sum(known[key]) / channels,) * wanted for key in ("mean", "std")}
                known.update(input_size=(wanted, *size), **moments)
            if classifier.out_features != known["num_classes"]:
                known["label_names"] = None
        described: Any = {**known, "architecture": PREFIX + name, "num_classes": classifier.out_features}
        vars(net).update(num_classes=classifier.out_features, pretrained_cfg=described, default_cfg=described)
        _hint_at_decay(net)
        return net.train()  # timm's nets are in training mode too

    make.__name__ = PREFIX + name
    return make


def _hint_at_decay(net: nn.Module) -> None:
    """Tells timm which parameters of several axes do not decay, and the user which one of a single axis should."""
    biases = frozenset(name for name, p in net.named_parameters() if p.dim() > 1 and name.rpartition(".")[2] == "bias")
    vars(net)["no_weight_decay"] = functools.partial(set, biases)
    if left_out := [name for name, p in weights_of(net).items() if p.dim() == 1]:
        _log.warning(
            "%s has one axis, so timm's optimizers would not decay it, though it holds all kernels of its layers; pass "
            "create_optimizer_v2(..., param_group_fn=lambda net: pocketcnn.train.parameter_groups(net, weight_decay))",
            left_out[0],
        )


def _fresh(name: str, options: dict[str, Any]) -> nn.Module:
    """Makes a net by name, freshly initialised; a net that exists only trained is rebuilt from its file's description."""
    if name in list_models():
        return create_model(name, **options)
    path = next(zoo.path_of(card) for card in zoo.cards(name))
    header = checkpoint.read_header(path)
    steps = [
        Step(step["method"], step["options"], tuple(step["sites"]), step.get("part", "")) for step in header["steps"]
    ]
    return rebuild(create_model(header["base"]["name"], **{**header["base"]["options"], **options}), steps)


def _set_classes(net: Any, num_classes: int) -> None:
    """Gives a trained net a new classifier if it has another number of classes, and notes that for its file."""
    if num_classes == net.fc.out_features:
        return
    net.fc = nn.Linear(net.fc.in_features, num_classes)
    made = record_of(net)
    base: Any = made.base
    options = {**base["options"], "num_classes": num_classes}
    remember(net, dataclasses.replace(made, base={**base, "options": options}))
