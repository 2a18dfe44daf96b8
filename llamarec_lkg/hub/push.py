"""Pushing a finished run: the folder of the trainer or the command line, with a card that knows where it lies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import CommitInfo
from transformers.utils import logging

from ..data.schema import USER_ID
from ..evaluation.report import AS_PUBLISHED, RANKER, REFERENCE, WITH_CO_RATINGS, Report
from ..graph.co_ratings import has_co_ratings
from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.files import read_json
from ..utils.fingerprints import weights_fingerprint
from ..utils.hub import is_local
from .layout import CONFIG_FILE, GRAPH_FOLDER, RETRIEVER_FOLDER, USERS_FILE
from .model_card import ModelCard
from .public_copy import push_saved


logger = logging.get_logger(__name__)


CARD_FACTS, REPORT_FILE = "card.json", "report.json"


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Push ranker, processor and retriever of a run, as one commit, with a card made from what the run wrote down.

    Args:
        folder: what the trainer, `llamarec-lkg train` or a `save_pretrained` wrote.
        repo_id (`str`): "owner/name"; made if it does not exist.
        options: of [`~hub_repository.push_saved`].

    Raises:
        LKGError: the folder is not whole, its backbone has no name that others can load, or the upload failed.
    """
    if options.get("card") is None and (Path(folder) / CARD_FACTS).exists():
        ModelCard.from_json(Path(folder) / CARD_FACTS)  # where it cannot be read, no repository is made
        users = bool(options.get("include_users"))
        weights = options.get("include_user_embedding")
        sharing = {
            "interactions": bool(options.get("include_interactions")),
            "user_weights": users if weights is None else weights,
        }

        def card(repo: str, holds: Collection[str], graph: KnowledgeGraph | None) -> str:
            has = {"graph": graph, "has_retriever": "retriever" in holds}
            found = run_card(folder, repo, options.get("backbone"), **has, **sharing)
            _say_what_it_costs(found)
            if found.data_license and not options.get("private"):
                logger.warning(f"Titles and facts of the data go along. Their terms: {found.data_license}.")
            return str(found.to_hub_card())

        options["card"] = card
    return push_saved(folder, repo_id, **options)


def run_card(
    folder: str | Path,
    repo_id: str,
    backbone: str | None = None,
    *,
    graph: KnowledgeGraph | None = None,
    interactions: bool = False,
    user_weights: bool = False,
    has_retriever: bool | None = None,
) -> ModelCard:
    """The card of a run's folder as that of a repository: no folder of this machine is named, the graph is the one
    that is published, and the figures that come first are those of what is published, where they were measured.

    Args:
        graph: the one that is published.
        interactions, user_weights: whether these are published.
        has_retriever: whether the repository then holds a retriever; by default, whether the folder does.
    """
    folder = Path(folder)
    withheld, described = [], {}
    if graph is not None and not interactions:
        described["graph"] = graph.describe()
        known = pd.read_parquet(folder / USERS_FILE)[USER_ID].astype(str).tolist()
        people = KnowledgeGraph.from_pretrained(folder / GRAPH_FOLDER).people(known)
        withheld += ["the edges of users"] if people.any() else []
    if (folder / CONFIG_FILE).exists() and read_json(folder / CONFIG_FILE).get("num_users") and not user_weights:
        withheld.append("the weights of single users")
    card = ModelCard.from_json(folder / CARD_FACTS)
    if has_retriever is None:
        has_retriever = (folder / RETRIEVER_FOLDER / CONFIG_FILE).exists()
    base = backbone or card.base_model
    report = _report(folder)
    row = WITH_CO_RATINGS if graph is not None and has_co_ratings(graph) else AS_PUBLISHED
    exact = not interactions and not user_weights and report is not None and report.has_row(row)
    return replace(
        card,
        model_id=repo_id,
        base_model=base if base and (base == backbone or not is_local(base)) else None,
        dataset_name=_public_name(card.dataset_name),
        report=report,
        withheld=withheld,
        published_row=row if exact and withheld else RANKER,
        **described,
        has_retriever=has_retriever,
    )


def _say_what_it_costs(card: ModelCard, metric: str = "ndcg@10") -> None:
    """Tell who publishes less than was measured what it is worth, before readers find out."""
    if card.published_row == RANKER:
        return
    values = {row["name"]: row["metrics"][metric] for row in card.report.rows}
    if values[card.published_row] < values[RANKER]:
        better = values.get(WITH_CO_RATINGS, 0.0) if card.published_row == AS_PUBLISHED else 0.0
        hint = (
            f" With `include_co_ratings=True` (--include-co-ratings), sums over people in their place, it has "
            f"{better:.4f}."
        )
        instead = ", with co-ratings in their place" if card.published_row == WITH_CO_RATINGS else ""
        logger.warning(
            f"As published, without {' and '.join(card.withheld)}{instead}, this ranker has {metric} "
            f"{values[card.published_row]:.4f}; here it has {values[RANKER]:.4f}, its retriever alone "
            f"{values[REFERENCE]:.4f}. The card says so.{hint if better > values[card.published_row] else ''}"
        )


def _report(folder: Path) -> Report | None:
    """The run's report, if it is about the weights that are in the folder now."""
    if not (folder / REPORT_FILE).exists():
        return None
    try:
        report = Report(**read_json(folder / REPORT_FILE))
    except TypeError as error:
        logger.warning(f"{folder / REPORT_FILE} is that of another version ({error}); it is left out.")
        return None
    if report.protocol.get("weights") != weights_fingerprint(folder):
        logger.warning(f"{folder / REPORT_FILE} is about other weights than those in the folder; it is left out.")
        return None
    protocol = report.protocol
    if "dataset" in protocol:
        protocol = {**protocol, "dataset": _public_name(str(protocol["dataset"]))}
    return replace(report, protocol=protocol)


def _public_name(name: str) -> str:
    return Path(name).name if is_local(name) else name
