import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import UnknownModel
from pocketcnn.models import resnet


@pytest.mark.parametrize("name", sorted(resnet.BUILDERS))
def test_depth_is_in_the_name_and_any_size_works(name):
    with torch.device("meta"):
        net = pc.create_model(name, num_classes=7, in_channels=1, width=0.25)
        assert net(torch.empty(2, 1, 33, 47)).shape == (2, 7)
    layers = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(layers) == (42 if name == "resnet32_4stage" else int(name.lstrip("abcdefghijklmnopqrstuvwxyz")))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["imagenet", "small", "deep"]), st.floats(0.02, 1.0))
def test_any_image_and_width(height, width, stem, scale):
    net = pc.create_model("resnet20", stem=stem, width=scale).eval()
    assert torch.isfinite(net(torch.randn(1, 3, height, width))).all()


def test_convolutions_start_kaiming_fan_out():
    net = pc.create_model("resnet20")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_bad_options_are_refused():
    with pytest.raises(UnknownModel, match=r"no model 'resnet19'; did you mean"):
        pc.create_model("resnet19")
    with pytest.raises(ValueError, match="no stem 'huge'; known: imagenet, small, deep"):
        pc.create_model("resnet20", stem="huge")
    with pytest.raises(ValueError, match=r"width must be a positive number, not -1\.0"):
        pc.create_model("resnet20", width=-1.0)
    with pytest.raises(ValueError, match="num_classes and in_channels must be at least 1"):
        pc.create_model("resnet20", num_classes=0)
    with pytest.raises(ValueError, match="resnet20: no option 'classes'; it takes: in_channels"):
        pc.create_model("resnet20", classes=10)


def test_list_models_matches_patterns():
    assert pc.list_models("resnet20") == ["resnet20"]
    assert "resnet18_ring" in pc.list_models("*ring*")
    assert pc.list_models("nothing") == []
