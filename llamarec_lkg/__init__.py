"""Recommendation ranking with a language model and a knowledge graph, at home in the Hugging Face ecosystem.

Importing the package registers its configurations, models and processor with the Auto classes, and the task
"recommendation" with `transformers.pipeline`.
"""

from .data.anonymize import anonymize_users
from .data.convert import convert
from .data.facts import with_triples
from .data.schema import DatasetBundle, Interactions, ItemTable, RankingExample, Triples
from .data.sequences import PreprocessingSettings, SequenceDataset, prepare_dataset
from .data.sources import load_dataset_bundle
from .data.streaming import stream_interactions
from .graph.knowledge_graph import KnowledgeGraph
from .hub.push_dataset import push_dataset, write_dataset
from .ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from .ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking, RankingOutput
from .ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from .retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from .serving.pipeline import RecommendationPipeline
from .serving.reasons import Recommendation
from .serving.recommender import Recommender
from .training.trainer import LlamaRecLKGTrainer
from .training.training_args import LlamaRecLKGTrainingArguments
from .utils.errors import LKGDataError, LKGError


__version__ = "0.1.0"

__all__ = [
    "DatasetBundle",
    "Interactions",
    "ItemTable",
    "KnowledgeGraph",
    "LKGDataError",
    "LKGError",
    "LRURecConfig",
    "LRURecForRetrieval",
    "LlamaRecLKGConfig",
    "LlamaRecLKGForRanking",
    "LlamaRecLKGProcessor",
    "LlamaRecLKGTrainer",
    "LlamaRecLKGTrainingArguments",
    "PreprocessingSettings",
    "RankingExample",
    "RankingOutput",
    "Recommendation",
    "RecommendationPipeline",
    "Recommender",
    "SequenceDataset",
    "Triples",
    "anonymize_users",
    "convert",
    "load_dataset_bundle",
    "prepare_dataset",
    "push_dataset",
    "stream_interactions",
    "with_triples",
    "write_dataset",
]
