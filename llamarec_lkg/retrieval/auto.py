"""Loading the retriever of a saved folder or repository."""

from __future__ import annotations

from typing import Any

from ..hub.layout import CONFIG_FILE, RETRIEVER_FOLDER
from ..utils.hub import fetch
from .modeling_lrurec import LRURecForRetrieval, LRURecRetriever


def load_retriever(name: str, hub: dict[str, Any]) -> LRURecRetriever | None:
    """The retriever of a repository, where it holds one."""
    if fetch(name, f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", optional=True, **hub) is None:
        return None
    place = {**hub, "subfolder": "/".join(filter(None, (hub.get("subfolder"), RETRIEVER_FOLDER)))}
    return LRURecRetriever(LRURecForRetrieval.from_pretrained(name, **place))
