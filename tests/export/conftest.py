"""What the tests of exported files share."""

import functools

import pytest


@pytest.fixture(scope="module", autouse=True)
def _one_registry():
    """Keeps torch's list of translations, which it would rebuild for each file in more time than a file takes."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
