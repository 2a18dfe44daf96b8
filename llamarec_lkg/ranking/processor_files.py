"""How a processor is kept: tokenizer, items, graph and settings in a folder; and, apart from these, who its users
are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.schema import ITEM_ID, TITLE, USER_ID
from ..data.splits import EXCLUDED
from ..graph.knowledge_graph import KnowledgeGraph
from ..hub.layout import (
    GRAPH_FILES,
    GRAPH_FOLDER,
    ITEMS_FILE,
    PROCESSOR_FILE,
    PROCESSOR_MAP,
    USERS_FILE,
    ignore_private,
    write_shim,
)
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import check_graph
from ..retrieval.fused import CandidateWeights
from ..utils.errors import LKGError
from ..utils.files import atomic_file, read_json, read_saved_table, write_json
from ..utils.hub import fetch, hub_options, pinned


COUNT = "interactions"  # column of the items' table: how often each was trained on, 0 for less than five


class ProcessorFilesMixin:
    """Saving and loading of [`LlamaRecLKGProcessor`]."""

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds; graph and titles have files of their own."""
        return {
            "processor_class": type(self).__name__,
            "settings": self.settings,
            "evidence_scale": self.evidence_scale,
            "candidate_weights": None if self.candidate_weights is None else vars(self.candidate_weights),
            "repeats": self.repeats,
            "relations": list(self.relations),
            "auto_map": PROCESSOR_MAP,
        }

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the tokenizer, `processor_config.json`, `items.parquet` (ids, titles, and how often each item was
        trained on, 0 for less than five) and the graph; and, where users are known, `private/users.parquet` and a
        `.gitignore` that names `private/`. With `push_to_hub=True` it is then pushed, to `repo_id` or the folder's
        name."""
        options = PushOptions.take(kwargs, strict=push_to_hub)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_shim(folder)
        self.tokenizer.save_pretrained(folder)
        with atomic_file(folder / ITEMS_FILE) as temporary:
            counts = np.expm1(self.log_counts[1:]).round().astype(np.int64)
            columns = {ITEM_ID: list(self.item_ids), TITLE: list(self.titles), COUNT: counts}
            pd.DataFrame(columns).to_parquet(temporary)
        (folder / USERS_FILE).unlink(missing_ok=True)
        if self.user_ids:
            ignore_private(folder)
            with atomic_file(folder / USERS_FILE) as temporary:
                pd.DataFrame({USER_ID: list(self.user_ids)}).astype(str).to_parquet(temporary)
        self.knowledge_graph.save_pretrained(folder / GRAPH_FOLDER)
        write_json(folder / PROCESSOR_FILE, self.to_dict())  # last: with it the folder is a processor
        if push_to_hub:
            push_folder(folder, kwargs.get("repo_id", folder.name), parts=(self.hub_part,), options=options)
        return sorted(str(path) for path in folder.iterdir())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote, from a folder or from the Hub."""
        from transformers import AutoTokenizer

        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub_options(kwargs))
        description = read_json(fetch(name, PROCESSOR_FILE, **hub))
        graph_files = [fetch(name, f"{GRAPH_FOLDER}/{file}", **hub) for file in GRAPH_FILES]
        items_path, users_path = fetch(name, ITEMS_FILE, **hub), fetch(name, USERS_FILE, optional=True, **hub)
        try:
            items = read_saved_table(items_path)
            users = () if users_path is None else tuple(read_saved_table(users_path)[USER_ID])
        except ValueError as error:
            raise LKGError(
                f"{ITEMS_FILE} or {USERS_FILE} in {name} is damaged ({error}). Save or download it again."
            ) from error
        graph, weights = KnowledgeGraph.from_pretrained(Path(graph_files[0]).parent), description["candidate_weights"]
        check_graph(name, description["relations"], graph, tuple(items[ITEM_ID]))
        by_relation = [
            description["evidence_scale"],
            *(weights.get(part, ()) for part in ("evidence", "recent") if weights is not None),
        ]
        if any(values is not None and len(values) != len(graph.relations) for values in by_relation):
            raise LKGError(f"{PROCESSOR_FILE} in {name} does not fit its relations. Save or download it again.")
        return cls(
            AutoTokenizer.from_pretrained(name, **hub),
            graph,
            tuple(items[ITEM_ID]),
            tuple(items[TITLE]),
            users,
            evidence_scale=description["evidence_scale"],
            item_counts=items[COUNT].to_numpy(),
            candidate_weights=None if weights is None else CandidateWeights(**weights),
            repeats=description.get("repeats", EXCLUDED),  # what was saved before there was a choice
            **description["settings"],
        )
