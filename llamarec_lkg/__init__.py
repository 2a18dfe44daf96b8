"""Recommendation ranking with a language model and a knowledge graph, at home in the Hugging Face ecosystem.

Importing the package registers its configurations, models and processor with the Auto classes, and the task
"recommendation" with `transformers.pipeline`.
"""

from .anonymizing import anonymize_users
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .converters import convert, with_triples
from .dataset import PreprocessingSettings, SequenceDataset, prepare_dataset
from .explanations import Recommendation
from .hf_pipeline import RecommendationPipeline
from .knowledge_graph import KnowledgeGraph
from .modeling_llamarec_lkg import LlamaRecLKGForRanking, RankingOutput
from .modeling_lrurec import LRURecConfig, LRURecForRetrieval
from .pipeline import Recommender
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .publishing import push_dataset, write_dataset
from .schema import DatasetBundle, Interactions, ItemTable, LKGDataError, RankingExample, Triples
from .sources import load_dataset_bundle
from .streaming import stream_interactions
from .trainer import LlamaRecLKGTrainer
from .training_args import LlamaRecLKGTrainingArguments


__version__ = "0.1.0"

__all__ = [
    "DatasetBundle",
    "Interactions",
    "ItemTable",
    "KnowledgeGraph",
    "LKGDataError",
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
