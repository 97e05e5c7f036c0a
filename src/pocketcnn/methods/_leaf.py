"""Modules that `torch.fx` records as one call, as it does the layers of torch."""

from typing import Any

from torch import nn
from torch.fx import Proxy, Tracer


def proxy_in(*arguments: Any) -> Proxy | None:
    """Finds the first argument that stands for a tensor while `torch.fx` traces a net; None if there is none."""
    return next((a for a in arguments if isinstance(a, Proxy) and isinstance(a.tracer, Tracer)), None)


class AbstractLeaf(nn.Module):
    """A module whose operations depend on values that a symbolic trace does not have.

    Tracers treat modules outside of torch as functions to look into; this one tells them to record a call of the module.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        proxy = proxy_in(*args, *kwargs.values())
        if proxy is None:
            return super().__call__(*args, **kwargs)
        tracer: Any = proxy.tracer

        def record(*args: Any, **kwargs: Any) -> Proxy:
            given = self.given_by_caller(*args, **kwargs)
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, {**kwargs, **given})

        return tracer.call_module(self, record, args, kwargs)

    def __prepare_scriptable__(self) -> None:
        """Tells `torch.jit.script` that the module is nothing for it."""
        raise RuntimeError(
            f"torch.jit.script cannot read {type(self).__name__}; script pocketcnn.materialize(net) if that takes the net, or "
            "trace the net by torch.jit.trace or torch.export"
        )

    def given_by_caller(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns arguments that a recorded call has beyond its own, instead of what the modules around it provide."""
        return {}
