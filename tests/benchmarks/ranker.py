"""Building batches, scoring, recommending and training steps, beside the bare backbone and beside other libraries.

All on MovieLens-100K with SmolLM2-135M in float32, all layers; histories of 20 and lists of 20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, BatchFeature

from llamarec_lkg import Recommender
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.data.sequences import SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.ranking.backbones import resolve_backbone
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from llamarec_lkg.retrieval.configuration_lrurec import LRURecConfig
from llamarec_lkg.retrieval.modeling_lrurec import LRURecForRetrieval
from llamarec_lkg.retrieval.sequential import NeuralRetriever

from .runner import Figure, alone, benchmark, forget_peak, in_turns, peak, timed


if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

BACKBONE = "smollm2-135m-instruct-q4_1"


@cache
def world() -> SimpleNamespace:
    """The data, their graph with co-ratings, a tokenizer and lists to rank."""
    bundle = load_dataset_bundle("ml-100k")
    dataset = SequenceDataset.from_bundle(bundle)
    graph = KnowledgeGraph.from_dataset(dataset, bundle.triples).with_co_ratings(co_ratings(dataset))
    name = resolve_backbone(BACKBONE)
    generator = np.random.default_rng(42)
    lists = []
    for position in generator.choice(dataset.positions("test"), 128):
        history = dataset.item_sequence[dataset.history(position, 50)].astype(np.int64)
        others = np.setdiff1d(np.arange(1, dataset.num_items + 1), history)
        candidates = generator.choice(others, 20, replace=False)
        lists.append(RankingExample(0, history, np.ones(len(history)), candidates, generator.random(20), label=0))
    return SimpleNamespace(
        dataset=dataset, graph=graph, backbone=name, tokenizer=AutoTokenizer.from_pretrained(name), lists=lists
    )


def processor(**settings: Any) -> LlamaRecLKGProcessor:
    one = world()
    return LlamaRecLKGProcessor(one.tokenizer, one.graph, one.dataset.items.ids, one.dataset.items.titles, **settings)


@cache
def pair(readout: str, **settings: Any) -> tuple[LlamaRecLKGProcessor, LlamaRecLKGForRanking]:
    """A processor and a ranker that has not been trained."""
    one = processor(readout=readout, **settings)
    ranker = LlamaRecLKGForRanking.from_backbone(world().backbone, one.model_config(), dtype=torch.float32)
    return one, ranker


def shortened(example: RankingExample, length: int) -> RankingExample:
    return replace(example, history=example.history[-length:], ratings=example.ratings[-length:])


def tokens_of(ranker: LlamaRecLKGForRanking, batch: BatchFeature) -> torch.Tensor:
    """As many token ids a row as the rows of a batch have in the mean without padding, paths that were chosen among
    them, (B, L)."""
    with torch.inference_mode():
        chosen = ranker(**batch).selected_paths.flatten(1)
    lengths = batch["path_attention_mask"].sum(2).gather(1, chosen.clamp(min=0)).masked_fill(chosen < 0, 0)
    parts = [
        batch[f"{name}_attention_mask"] for name in ("prefix", "candidate", "suffix") if f"{name}_input_ids" in batch
    ]
    count = (lengths.sum() + sum(mask.sum() for mask in parts)) / len(chosen)
    return torch.randint(100, 1000, (len(chosen), round(count.item())), generator=torch.Generator().manual_seed(0))


def states(ranker: LlamaRecLKGForRanking, ids: torch.Tensor) -> torch.Tensor:
    """What the bare backbone makes of tokens."""
    return ranker._decoder()(ids, use_cache=False).last_hidden_state


def per_list(run: Callable[[list[RankingExample]], Any], size: int = 16) -> float:
    """Seconds a list, in batches, once each text has been seen."""
    lists = world().lists

    def all_of_them() -> None:
        for start in range(0, len(lists), size):
            run(lists[start : start + size])

    return timed(all_of_them, 3) / len(lists)


@benchmark
def batches() -> Iterator[Figure]:
    """One thread each; the bounds are lists a second, as seconds a list."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, settings in (("with a path each", {}), ("titles alone", {"num_paths": 0})):
        one = processor(**settings)
        yield Figure(f"batch with prompt, {name}", per_list(one), 1 / 2000, "s", 1, "2,000 lists a second")
    without = per_list(lambda lists: one(lists, with_prompt=False))
    yield Figure("batch without prompt", without, 1 / 2000, "s", 1, "2,000 lists a second")
    torch.set_num_threads(threads)


@benchmark
def recommend() -> Iterator[Figure]:
    one = processor()
    ranker = LlamaRecLKGForRanking(one.model_config(use_language_model=False)).eval()
    retriever = NeuralRetriever(LRURecForRetrieval(LRURecConfig(num_items=world().dataset.num_items)).eval())
    recommender = Recommender(ranker, one, retriever)
    history = [one.item_ids[item - 1] for item in world().lists[0].history]
    took = timed(lambda: recommender.recommend(history, k=10), 9)
    yield Figure("recommend 10 with reasons, language model off", took, 0.015, "s", 1, "bound")


@benchmark
def scoring() -> Iterator[Figure]:
    """Our whole forward pass beside the bare backbone on as many tokens, without padding."""
    for readout in ("candidates", "letters"):
        one, ranker = pair(readout)
        for size in (1, 8):
            batch = one([shortened(example, 20) for example in world().lists[:size]])
            ids = tokens_of(ranker, batch)
            bare = torch.inference_mode()(partial(states, ranker, ids))
            took = in_turns(partial(ranker.score, batch), bare)
            yield Figure(f"score 20 candidates, {readout}, batch {size}", *took, "s", 1.05, "bare backbone", True)


@benchmark
def cross_encoder() -> Iterator[Figure]:
    one, ranker = pair("candidates", num_paths=0)  # what the other reads, too: histories and titles
    encoder = cross_encoder_of()
    for length in (8, 10, 20):
        example = shortened(world().lists[0], length)
        pairs = pairs_of(one, example)
        took = in_turns(
            lambda example=example: ranker.score(one([example])),
            lambda pairs=pairs: encoder.predict(pairs, batch_size=20, show_progress_bar=False),
        )
        target = {8: 3.5, 10: 3.7, 20: 8}[length]
        yield Figure(f"score 20 candidates, history of {length}", *took, "s", target, "CrossEncoder, 20 pairs")


@cache
def cross_encoder_of() -> CrossEncoder:
    """The backbone as the other library's ranker of pairs."""
    from sentence_transformers import CrossEncoder

    precise = {"dtype": torch.float32}
    encoder = CrossEncoder(
        str(world().backbone), num_labels=1, device="cpu", local_files_only=True, model_kwargs=precise
    )
    encoder.tokenizer.pad_token = encoder.tokenizer.pad_token or encoder.tokenizer.eos_token
    encoder.model.config.pad_token_id = encoder.tokenizer.pad_token_id
    return encoder


def pairs_of(one: LlamaRecLKGProcessor, example: RankingExample) -> list[tuple[str, str]]:
    """The titles of the history, and that of each candidate."""
    history = "\n".join(one.titles[item - 1] for item in example.history)
    return [(history, one.titles[item - 1]) for item in example.candidates]


def lora_step_of(**settings: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward of four lists with LoRA on all linear layers: ours, and that of the bare backbone."""
    one = processor(**settings)
    ranker = LlamaRecLKGForRanking.from_backbone(world().backbone, one.model_config(), dtype=torch.float32)
    ranker.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    batch = one(world().lists[:4])
    ids = tokens_of(ranker, batch)
    ranker.train()

    def ours() -> None:
        ranker(**batch).loss.backward()
        ranker.zero_grad()

    def bare() -> None:
        states(ranker, ids).mean().backward()
        ranker.zero_grad()

    return ours, bare


def step_alone(whose: str, num_paths: str) -> float:
    """The most memory held in two steps, in GB; what else loading takes does not count."""
    step = lora_step_of(num_paths=int(num_paths))[whose == "bare"]
    forget_peak()
    step(), step()
    return peak()


@benchmark
def lora_step() -> Iterator[Figure]:
    peer = "bare backbone, same tokens"
    yield Figure("LoRA training step, 4 lists", *in_turns(*lora_step_of(), 3), "s", 1.05, peer, True)
    for name, num_paths in (("with a path each", "1"), ("titles alone", "0")):
        # what is free goes back to the system: holes between what is held are the allocator's, and by chance
        held = [alone(step_alone, whose, num_paths, MALLOC_MMAP_THRESHOLD_="65536") for whose in ("ours", "bare")]
        figures = (one["found"] for one in held)
        yield Figure(f"peak memory of a LoRA training step, {name}", *figures, "GB", 1.05, peer, True)
