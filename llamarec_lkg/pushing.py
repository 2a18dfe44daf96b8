"""Pushing a finished run: the folder of the trainer or the command line, with a card that knows where it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from .backbones import is_local
from .evaluation import Report
from .hub_repository import RETRIEVER_FOLDER, push_saved
from .model_card import ModelCard
from .storage import read_json


CARD_FACTS, REPORT_FILE = "card.json", "report.json"


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Push ranker, processor and retriever of a run, as one commit, with a card made from what the run wrote down.

    Args:
        folder: what the trainer, `llamarec-lkg train` or a `save_pretrained` wrote.
        repo_id (`str`): "owner/name"; made if it does not exist.
        options: of [`~hub_repository.push_saved`].

    Raises:
        LKGDataError: the folder is not whole, its backbone has no name that others can load, or the upload failed.
    """
    if options.get("card") is None and (Path(folder) / CARD_FACTS).exists():
        options["card"] = lambda whole_id: str(run_card(folder, whole_id, options.get("backbone")).to_hub_card())
    return push_saved(folder, repo_id, **options)


def run_card(folder: str | Path, repo_id: str, backbone: str | None = None) -> ModelCard:
    """The card of a run's folder as that of a repository: no folder of this machine is named."""
    folder = Path(folder)
    card = ModelCard(**read_json(folder / CARD_FACTS))
    base = backbone or card.base_model
    dataset = Path(card.dataset_name).name if is_local(card.dataset_name) else card.dataset_name
    report = Report(**read_json(folder / REPORT_FILE)) if (folder / REPORT_FILE).exists() else None
    return replace(
        card,
        model_id=repo_id,
        base_model=base if base and (base == backbone or not is_local(base)) else None,
        dataset_name=dataset,
        report=report,
        has_retriever=(folder / RETRIEVER_FOLDER).exists(),
    )
