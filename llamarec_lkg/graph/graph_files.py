"""A knowledge graph as files: its arrays, its nodes' texts, and what they mean. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..utils.errors import LKGError
from ..utils.files import atomic_files, read_json, read_saved_table, write_json


FORMAT_VERSION = 3
_ARRAYS = {
    "offsets": np.int64,
    "targets": np.int32,
    "edge_relations": np.int32,
    "timestamps": np.int64,
    "node_types": np.int32,
    "item_nodes": np.int32,
}


def write_graph(folder: str | Path, fields: Mapping[str, Any]) -> None:
    """As `KnowledgeGraph.save_pretrained` says, from the fields of a graph."""
    description = {
        "format_version": FORMAT_VERSION,
        "relations": list(fields["relations"]),
        "entity_types": list(fields["entity_types"]),
        "num_nodes": len(fields["offsets"]) - 1,
        "num_edges": len(fields["targets"]),
    }
    with atomic_files(folder) as temporary:
        arrays = {name: np.ascontiguousarray(fields[name], dtype) for name, dtype in _ARRAYS.items()}
        if fields["weights"] is not None:
            arrays["weights"] = np.ascontiguousarray(fields["weights"], np.float32)
        save_file(arrays, temporary / "graph.safetensors")
        # numpy's own texts would all be as long as the longest
        nodes = pd.DataFrame({"key": fields["node_keys"], "name": fields["node_names"]}, dtype=str)
        nodes.to_parquet(temporary / "nodes.parquet")
        write_json(temporary / "graph.json", description)


def read_graph(folder: str | Path) -> dict[str, Any]:
    """As `KnowledgeGraph.from_pretrained` says: the fields of a graph."""
    from safetensors.torch import load_file  # its numpy twin reads everything into memory

    folder = Path(folder)
    description = read_json(folder / "graph.json")
    if description.get("format_version") != FORMAT_VERSION:
        raise LKGError(
            f"{folder} holds a graph in format {description.get('format_version')}; this version reads "
            f"{FORMAT_VERSION}. Build the graph again, or install the version that wrote it."
        )
    try:
        nodes = read_saved_table(folder / "nodes.parquet")
        arrays = {name: tensor.numpy() for name, tensor in load_file(folder / "graph.safetensors").items()}
        fields = {name: arrays[name] for name in _ARRAYS} | {"weights": arrays.get("weights")}
        num_nodes, num_edges = description["num_nodes"], description["num_edges"]
        if not (
            len(fields["offsets"]) - 1 == num_nodes == len(nodes) == len(fields["node_types"])
            and len(fields["targets"]) == num_edges == len(fields["edge_relations"]) == len(fields["timestamps"])
            and int(fields["offsets"][-1]) == num_edges
            and (fields["weights"] is None or len(fields["weights"]) == num_edges)
        ):
            raise ValueError("its files do not fit each other")
        fields["relations"] = tuple(description["relations"])
        fields["entity_types"] = tuple(description["entity_types"])
        fields["node_keys"] = nodes["key"].to_numpy(dtype=object)
        fields["node_names"] = nodes["name"].to_numpy(dtype=object)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise LKGError(f"The knowledge graph in {folder} is damaged ({error}). Save or download it again.") from error
    return fields
