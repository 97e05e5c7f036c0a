"""Nets on the Hugging Face hub, and our nets in timm's registry.

Names resolve lazily: timm's part does without huggingface_hub.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketcnn.hub.repository import HubModel as HubModel
    from pocketcnn.hub.repository import from_pretrained as from_pretrained
    from pocketcnn.hub.repository import push_to_hub as push_to_hub
    from pocketcnn.hub.repository import save_pretrained as save_pretrained

__all__ = ["HubModel", "from_pretrained", "push_to_hub", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pocketcnn.hub' has no attribute {name!r}")
    from pocketcnn.hub import repository

    return getattr(repository, name)
