"""Recommendation ranking with a language model and a knowledge graph, at home in the Hugging Face ecosystem.

Importing the package is light: its names are loaded when they are asked for. Its configurations, models and processor
are registered with the Auto classes of `transformers`, and the task "recommendation" with `transformers.pipeline`, as
soon as these are imported, before or after this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import wrapt

from .utils.upstream import hide_missing_kernel


__version__ = "0.1.0"

_NAMES = {
    "data.anonymize": ["anonymize_users"],
    "data.convert": ["convert"],
    "data.facts": ["with_triples"],
    "data.interactions": ["Interactions"],
    "data.schema": ["DatasetBundle", "ItemTable", "RankingExample", "Triples"],
    "data.sequences": ["PreprocessingSettings", "SequenceDataset", "prepare_dataset"],
    "data.sources": ["load_dataset_bundle", "stream_interactions"],
    "graph.knowledge_graph": ["KnowledgeGraph"],
    "hub.push_dataset": ["push_dataset", "write_dataset"],
    "ranking.configuration_llamarec_lkg": ["LlamaRecLKGConfig"],
    "ranking.merged": ["export_merged"],
    "ranking.modeling_llamarec_lkg": ["LlamaRecLKGForRanking", "RankingOutput"],
    "ranking.processing_llamarec_lkg": ["LlamaRecLKGProcessor"],
    "retrieval.configuration_lrurec": ["LRURecConfig"],
    "retrieval.configuration_sasrec": ["SASRecConfig"],
    "retrieval.modeling_lrurec": ["LRURecForRetrieval"],
    "retrieval.modeling_sasrec": ["SASRecForRetrieval"],
    "retrieval.sequential": ["NeuralRetriever"],
    "serving.batch_ranking": ["rank_file"],
    "serving.pipeline": ["RecommendationPipeline"],
    "serving.prompt_files": ["write_prompts"],
    "serving.reasons": ["Recommendation"],
    "serving.recommender": ["Recommender"],
    "serving.remote": ["RemoteScorer"],
    "training.trainer": ["LlamaRecLKGTrainer"],
    "training.training_args": ["LlamaRecLKGTrainingArguments"],
    "utils.errors": ["LKGDataError", "LKGError"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)

# Module of transformers -> the modules here that register themselves with it when they are imported. Such a module
# may import the classes of its own line and of those above it, never of those below.
_REGISTERED = {
    "transformers.models.auto.configuration_auto": [
        "ranking.configuration_llamarec_lkg",
        "retrieval.configuration_lrurec",
        "retrieval.configuration_sasrec",
    ],
    "transformers.models.auto.modeling_auto": [
        "ranking.modeling_llamarec_lkg",
        "retrieval.modeling_lrurec",
        "retrieval.modeling_sasrec",
    ],
    "transformers.models.auto.processing_auto": ["ranking.processing_llamarec_lkg"],
    "transformers.pipelines": ["serving.pipeline"],
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next time it is found at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register(module: Any) -> None:
    for name in _REGISTERED[module.__name__]:
        import_module(f".{name}", __name__)


hide_missing_kernel()
for _name in _REGISTERED:
    wrapt.when_imported(_name)(_register)
