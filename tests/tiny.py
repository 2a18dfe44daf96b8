"""A whole ranker in miniature: a byte tokenizer, backbones of a few thousand weights, and a small film world."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.processing_llamarec_lkg import LlamaRecLKGProcessor


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
SETTINGS = {"num_candidates": 5, "history_length": 4, "num_paths": 3, "max_title_tokens": 20, "max_length": 1024}


def example_module(name: str) -> ModuleType:
    """A script of `examples/`, imported."""
    path = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, **{symbol: index + 1 for index, symbol in enumerate(alphabet)}}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")


def backbone(kind: str = "llama", **sizes):
    torch.manual_seed(0)
    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config}[kind]
    extra = {"head_dim": 8} if kind == "qwen3" else {}
    return AutoModelForCausalLM.from_config(config_class(**{**SIZES, **extra, **sizes}, pad_token_id=0)).eval()


def processor(dataset, **settings) -> LlamaRecLKGProcessor:
    graph = KnowledgeGraph.from_dataset(dataset)
    return LlamaRecLKGProcessor(
        tokenizer(), graph, dataset.items.ids, dataset.items.titles, dataset.user_ids,
        **{"item_counts": 10 * dataset.training_counts()[1:], **SETTINGS, **settings},
    )  # fmt: skip


def model(proc: LlamaRecLKGProcessor, kind: str = "llama", **config) -> LlamaRecLKGForRanking:
    torch.manual_seed(0)
    return LlamaRecLKGForRanking.from_backbone(backbone(kind), proc.model_config(**config))


def examples(dataset, count: int = 6, num_candidates: int = 5, seed: int = 0) -> list[RankingExample]:
    """Lists at the users' last positions, the target at a random place."""
    generator = np.random.default_rng(seed)
    lists = []
    for number in range(count):
        user = number % dataset.num_users + 1
        position = int(dataset.offsets[user]) - 1
        piece = dataset.history(position)
        target = int(dataset.item_sequence[position])
        others = [item for item in range(1, dataset.num_items + 1) if item != target]
        chosen = generator.permutation(np.append(generator.choice(others, num_candidates - 1, replace=False), target))
        lists.append(
            RankingExample(
                user=user,
                history=dataset.item_sequence[piece].astype(np.int64),
                ratings=dataset.ratings[piece],
                candidates=chosen.astype(np.int64),
                retrieval_scores=generator.normal(size=num_candidates).astype(np.float32),
                label=int(np.flatnonzero(chosen == target)[0]),
            )
        )
    return lists


def entities_of(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Entities of items, one list an item, as `ItemFeatures.entities`."""
    offsets = np.concatenate([[0, 0], np.cumsum([len(row) for row in lists], dtype=np.int64)]).astype(np.int64)
    return offsets, np.array([entity for row in lists for entity in row], dtype=np.int64)
