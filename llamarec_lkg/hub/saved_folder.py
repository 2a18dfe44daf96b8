"""A saved folder, opened once for a push: which parts it has, whether they are whole, and what its run wrote down."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..data.schema import ITEM_ID
from ..evaluation.report import Report
from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.errors import LKGError
from ..utils.files import read_json, read_saved_table
from ..utils.fingerprints import weights_fingerprint
from ..utils.hub import is_local, matches, template_text
from .layout import (
    ADAPTER_FILES,
    ADAPTER_FOLDER,
    CARD_FACTS,
    CONFIG_FILE,
    GRAPH_FILES,
    GRAPH_FOLDER,
    ITEMS_FILE,
    PART_MARKS,
    PARTS,
    PRIVATE_PARTS,
    PROCESSOR_FILE,
    REPORT_FILE,
    ROOT_ADAPTER,
    SHIM,
    USER_EMBEDDING,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
)
from .model_card import ModelCard, read_record


logger = logging.getLogger(__name__)


class SavedFolder:
    """What the trainer, `llamarec-lkg train` or a `save_pretrained` wrote, as a push sees it.

    Args:
        path: the folder.
        parts: those of "model", "processor" and "retriever" to look at; what is not there is passed over.

    Attributes:
        paths (`list[str]`): all files below the folder, as paths in a repository.
        config (`dict`): the model's configuration; empty where there is no model.

    Raises:
        LKGError: there is no such folder, it has neither model nor processor, or an adapter at its root.
    """

    def __init__(self, path: str | Path, parts: Sequence[str] = tuple(PARTS)):
        self.path = Path(path)
        if not self.path.is_dir():
            raise LKGError(f"There is no folder {str(path)!r} in {Path.cwd()}. Give the one that a run was saved in.")
        refuse_root_adapter(self.path)
        self.paths = sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        self.parts = [part for part in PARTS if part in parts and PART_MARKS[part] in self.paths]
        if not {"model", "processor"} & {*self.parts}:
            raise LKGError(
                f"{path} holds neither a model ({CONFIG_FILE}) nor a processor ({PROCESSOR_FILE}). Give the folder "
                "that `save_pretrained`, the trainer or `llamarec-lkg train` wrote."
            )
        self.config: dict[str, Any] = read_json(self.path / CONFIG_FILE) if "model" in self.parts else {}

    # -- what goes up -----------------------------------------------------------------------------------------------

    def content(self, *, share_users: bool = False, backbone: str | None = None) -> dict[str, Path | bytes]:
        """Path in the repository -> file or bytes, of every file that a push uploads, but the card.

        Args:
            share_users: take `private/` along.
            backbone: the name by which others load the backbone, where the saved one is a folder of this machine.

        Raises:
            LKGError: a part is not whole, holds data about people outside `private/`, or its backbone has no name
                that others can load.
        """
        chosen = [path for path in self.paths if any(matches(path, PARTS[part]) for part in self.parts)]
        content: dict[str, Path | bytes] = {}
        if "model" in self.parts:
            self._check_model(chosen)
            content = self._public_settings(chosen, backbone)
        if "processor" in self.parts:
            self._check_processor(chosen)
        if share_users:
            chosen += [path for part in self.parts for path in PRIVATE_PARTS[part] if path in self.paths]
        content = {path: self.path / path for path in chosen} | content
        return {**content, f"{SHIM}.py": template_text(f"{SHIM}.py.j2").encode()}

    def _check_model(self, chosen: Sequence[str]) -> None:
        whole = not self.config.get("external_backbone") and self.config.get("use_language_model", True)
        weights, adapters = [WEIGHTS_FILE], [path for path in chosen if path.startswith(f"{ADAPTER_FOLDER}/")]
        if WEIGHTS_FILE not in chosen and WEIGHTS_INDEX in chosen:
            weights = sorted(set(read_json(self.path / WEIGHTS_INDEX)["weight_map"].values()))
        names, others = set[str](), set[str]()
        for path in chosen:
            if path.endswith(".safetensors") and "/" not in path:
                with safe_open(self.path / path, framework="np") as file:
                    (names if path in weights else others).update(file.keys())
        if self.config.get("num_users") or USER_EMBEDDING in names | others:
            raise LKGError(
                f"The model in {self.path} holds weights of single users outside private/. Nothing was uploaded. Load "
                "it and save it again, which moves them there."
            )
        lacking = [path for path in weights if path not in chosen]
        needed = ["preference.bias", "fusion.evidence_weight"]
        if self.config.get("use_language_model", True) and self.config.get("readout") == "candidates":
            needed.append("readout.out.weight")
        lacking += [name for name in needed if name not in names]
        if whole and not any(name.startswith("language_model.") for name in names):
            lacking.append("language_model.*")
        for name in ADAPTER_FILES if self.config.get("has_adapter") else ():
            if not any(path.endswith(f"/{name}") for path in adapters):
                lacking.append(f"{ADAPTER_FOLDER}/{name}")
        if lacking:
            raise LKGError(f"The model in {self.path} is not whole: {lacking} is missing. Save it again.")
        if others or not whole and any(name.startswith("language_model.") for name in names):
            raise LKGError(
                f"{self.path} holds weights of another model beside those of its {CONFIG_FILE}. Nothing was uploaded. "
                "Save the model again, in a folder of its own."
            )

    def _check_processor(self, chosen: Sequence[str]) -> None:
        needed = [PROCESSOR_FILE, ITEMS_FILE, *(f"{GRAPH_FOLDER}/{name}" for name in GRAPH_FILES)]
        lacking = [path for path in needed if path not in chosen]
        if lacking:
            raise LKGError(f"The processor in {self.path} is not whole: {lacking} is missing. Save it again.")
        if KnowledgeGraph.from_pretrained(self.path / GRAPH_FOLDER).has_people:
            raise LKGError(
                f"The graph in {self.path} holds people. Nothing was uploaded. Build it with `users=False`, add what "
                "ratings say by `with_co_ratings`, and save the processor again."
            )

    def _public_settings(self, chosen: Sequence[str], backbone: str | None) -> dict[str, Path | bytes]:
        """`config.json` and the adapters' settings, with a name of the backbone that others can load."""
        config, external = dict(self.config), bool(self.config.get("external_backbone"))
        name = config.get("backbone_name_or_path")
        if external:
            if backbone not in (None, name):
                config["backbone_revision"] = None  # a commit of the one that was trained around
            name = public_backbone(name, backbone)
        config["backbone_name_or_path"] = None if not name or is_local(name) and not external else name
        if config.get("text_config"):
            config["text_config"] = {k: v for k, v in config["text_config"].items() if k != "_name_or_path"}
        content: dict[str, Path | bytes] = {CONFIG_FILE: _json(config)}
        for path in chosen:
            if path.endswith(f"/{ADAPTER_FILES[0]}"):
                settings = read_json(self.path / path)
                settings["base_model_name_or_path"] = config["backbone_name_or_path"]
                content[path] = _json(settings)
        return content

    @cached_property
    def item_ids(self) -> list[str]:
        """Of a folder with a processor."""
        return read_saved_table(self.path / ITEMS_FILE)[ITEM_ID].astype(str).tolist()

    # -- what the run wrote down ------------------------------------------------------------------------------------

    @cached_property
    def card(self) -> ModelCard | None:
        """The card of the run that this folder is, with its report; None where no run wrote one, or only a part of
        it is looked at. No folder of this machine is named."""
        if CARD_FACTS not in self.paths or not {"model", "processor"} <= {*self.parts}:
            return None
        card = read_record(self.path / CARD_FACTS, ModelCard)
        return replace(card, dataset_name=_public_name(card.dataset_name), report=self.report)

    @cached_property
    def report(self) -> Report | None:
        """The run's report, if it is about the weights that are in the folder now."""
        if REPORT_FILE not in self.paths:
            return None
        report = read_record(self.path / REPORT_FILE, Report)
        if report.protocol.get("weights") != weights_fingerprint(self.path):
            logger.warning(f"{self.path / REPORT_FILE} is about other weights than those in the folder; left out.")
            return None
        return replace(report, protocol={**report.protocol, "dataset": _public_name(report.protocol["dataset"])})

    def snapshot(self) -> tempfile.TemporaryDirectory:
        """A copy of all that a push reads, which a push in the background goes on reading when the folder changes."""
        copy = tempfile.TemporaryDirectory()
        patterns = [pattern for part in self.parts for pattern in (*PARTS[part], *PRIVATE_PARTS[part])]
        for path in self.paths:
            if matches(path, [*patterns, CARD_FACTS, REPORT_FILE]):
                target = Path(copy.name, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.path / path, target)
        return copy


def public_backbone(saved: str | None, given: str | None = None) -> str:
    """The name under which others load the backbone of a model that is saved without it: the given one, or the saved
    one. Raise `LKGError` where none was given and the saved one is none or a folder of this machine."""
    if given is None and (not saved or is_local(saved)):
        raise LKGError(
            f"What was trained is pushed without its backbone, and that is {saved!r}: no name that others can load. "
            "Give `backbone='owner/name'` (`hub_backbone` of the training arguments), the id of the same model on the "
            "Hub, or push it with its backbone: `model.merge_adapter()`, then push."
        )
    return given or saved


def refuse_root_adapter(folder: str | Path) -> None:
    """Raise `LKGError` where a folder has an adapter at its root, which would hide the ranker."""
    found = [name for name in ROOT_ADAPTER if (Path(folder) / name).exists()]
    if found:
        raise LKGError(
            f"{folder} holds {found} at its root. There `AutoModel` would take it for a bare adapter and load the "
            f"backbone without preferences; a ranker's adapter is in {ADAPTER_FOLDER}/. Use a new folder, or remove "
            "these files, which `PeftModel.save_pretrained` wrote."
        )


def check_graph(name: str, relations: Sequence[str], graph: KnowledgeGraph, item_ids: Sequence[str]) -> None:
    """Raise `LKGError` where the graph in `name` is not the one that relations and items were saved with."""
    if list(graph.relations) != list(relations):
        raise LKGError(
            f"The graph in {name} has the relations {list(graph.relations)}, its {PROCESSOR_FILE} {list(relations)}. "
            "The files are from two places; save the processor again."
        )
    keys = [str(graph.node_keys[node]) if node >= 0 else None for node in graph.item_nodes[1:]]
    other = [(key, raw) for key, raw in zip(keys, item_ids, strict=False) if key not in (None, raw)]
    if other or len(keys) != len(item_ids):
        first = f", and {other[0][0]!r} stands where {other[0][1]!r} should" if other else ""
        raise LKGError(
            f"The graph in {name} was made for other items: it has {len(keys):,}, items.parquet {len(item_ids):,}"
            f"{first}. Build the graph from the same data set as the titles, and save the processor again."
        )


def _public_name(name: str) -> str:
    return Path(name).name if is_local(name) else name


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
