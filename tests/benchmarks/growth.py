"""`python -m tests.benchmarks.growth [NAME ...]`: costs as graph, history, list and catalogue grow, beside peers.

Each is measured, written as `costs-NAME.json`, and drawn from that beside it; `--draw` draws what was written before.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from llamarec_lkg.data.schema import RankingExample, Triples
from llamarec_lkg.graph import paths
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.retrieval.base import best_items, pad_left
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.retrieval.sequential import NeuralRetriever
from llamarec_lkg.retrieval.training import ItemSampler, training_step

from .curves import Curves, Line, draw
from .graph import SHOWN, facts_by_chance, products_of, searched
from .ranker import cross_encoder_of, pair, pairs_of, shortened, states, tokens_of, world
from .retrieval import BATCH, BEST, USERS, windows
from .runner import machine


RESULTS = Path(__file__).resolve().parents[2] / "examples" / "results"
EDGES = (10_000, 100_000, 1_000_000, 10_000_000)
HISTORY = (5, 10, 20, 50, 100)
LIST = (5, 10, 20, 50, 100, 200)
CATALOGUE = (10_000, 100_000, 1_000_000, 10_000_000)
STEPS = 1_000_000  # the largest catalogue that is trained on: ten times as many take 10 GB with their gradients
LOGITS = 100_000  # and of the full softmax: ten times as many take 17 GB
SAMPLE = 8192  # the default above 100,000 items
READ = 20  # items of a history that stays as it is, and candidates of a list

Runs = dict[Line, Callable[[], Any]]
GoesOn = Callable[[Line], bool]  # whether a peer's line does


def graph(size: int, goes_on: GoesOn) -> Runs:
    """Graphs by chance of one shape, ten edges an item, both ways of a fact counted; users come in turn."""
    items = size // 10
    triples, ids = facts_by_chance(items)
    build = partial(KnowledgeGraph.from_triples, triples, ids)
    made = build()
    index, everything = EvidenceIndex.from_graph(made), np.arange(items + 1)
    generator = np.random.default_rng(0)
    users = cycle([generator.choice(items, (2, SHOWN), replace=False) + 1 for _ in range(16)])
    index.evidence([next(users)[0]], [everything])  # which makes tables at first
    building, linking = "build the graph", f"paths, {SHOWN} x {SHOWN} pairs"
    runs: Runs = {
        (building, ""): build,
        (linking, ""): lambda: paths.find(made, *next(users)),
        ("evidence, all items", ""): lambda: index.evidence([next(users)[0]], [everything]),
        (f"evidence, {SHOWN} candidates", ""): lambda: index.evidence(*([one] for one in next(users))),
    }
    if goes_on(line := ("evidence, all items", "scipy, by relation")):
        products = products_of(index)
        runs[line] = lambda: products(next(users)[0])
    if goes_on(line := (building, "networkx.add_edges_from")):
        runs[line] = partial(in_networkx, triples)
        if goes_on(line := (linking, "networkx.shortest_path")):
            peer = in_networkx(triples)
            runs[line] = lambda: searched(peer, *next(users).astype(str))
    return runs


def in_networkx(triples: Triples) -> nx.Graph:
    peer = nx.Graph()
    peer.add_edges_from(zip(triples.heads, triples.tails, strict=True))
    return peer


def history(size: int, goes_on: GoesOn) -> Runs:
    """Lists of `READ` candidates after histories of MovieLens-100K, titles alone in the prompt: what all can read."""
    one, ranker = pair("candidates", num_paths=0, history_length=HISTORY[-1], max_length=2048)
    example, scoring = shortened(example_of(READ), size), f"score {READ} candidates"
    ids, last = tokens_of(ranker, one([example])), [example_of(READ, seed).history[-size:] for seed in range(USERS)]
    runs: Runs = {
        (scoring, ""): lambda: ranker.score(one([example])),
        (scoring, "bare backbone, as many tokens"): partial(bare, ranker, ids),
        (f"statistics of {USERS} histories", ""): partial(one.evidence_index.statistics, last),
    }
    if goes_on(line := (scoring, f"CrossEncoder, {READ} pairs")):
        texts = pairs_of(one, example)
        runs[line] = partial(cross_encoder_of().predict, texts, batch_size=READ, show_progress_bar=False)
    return runs


def candidates(size: int, goes_on: GoesOn) -> Runs:
    """Lists after a history of `READ`, titles alone in the prompt; the peers are the same backbone without us."""
    one, ranker = pair("candidates", num_paths=0)
    example = shortened(example_of(size), READ)
    batch = one([example])
    ids = tokens_of(ranker, batch)
    runs: Runs = {
        ("score the list", ""): lambda: ranker.score(one([example])),
        ("score the list", "bare backbone, as many tokens"): partial(bare, ranker, ids),
    }
    if goes_on(line := ("score the list", "bare backbone, a prompt a candidate")):
        length = batch["prefix_attention_mask"].sum() + batch["candidate_attention_mask"].sum() / size
        prompts = ids.new_full((size, round(length.item())), 100).split(READ)
        runs[line] = lambda: [bare(ranker, some) for some in prompts]
    return runs


def example_of(count: int, seed: int = 0) -> RankingExample:
    """A history as long as the longest that is measured, and candidates by chance."""
    dataset, generator = world().dataset, np.random.default_rng(seed)
    positions = dataset.positions("test")
    lengths = positions - dataset.offsets[dataset.user_of(positions) - 1]
    position = generator.choice(positions[lengths >= HISTORY[-1]])
    items = dataset.item_sequence[dataset.history(position, HISTORY[-1])].astype(np.int64)
    others = np.setdiff1d(np.arange(1, dataset.num_items + 1), items)
    return RankingExample(0, items, np.ones(len(items)), generator.choice(others, count, False), np.zeros(count))


@torch.inference_mode()
def bare(ranker: LlamaRecLKGForRanking, ids: torch.Tensor) -> torch.Tensor:
    return states(ranker, ids)


def catalogue(size: int, goes_on: GoesOn) -> Runs:
    """LRURec with the default settings: the best items for users, and training steps on windows as of MovieLens."""
    torch.manual_seed(0)
    model, histories = LRURecForRetrieval(LRURecConfig(num_items=size)), windows(USERS, size)
    retriever, vectors = NeuralRetriever(model).frozen(), model.item_vectors().detach()
    best, step = f"best {BEST}, {USERS} users", f"training step of {BATCH} windows"
    runs: Runs = {
        (best, ""): partial(best_items, retriever, histories, BEST, histories),
        (best, "product and torch.topk"): lambda: torch.topk(retriever.states(histories) @ vectors.T, BEST),
    }
    if size <= STEPS:
        batch, optimizer = histories[:BATCH], torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        sampler = ItemSampler(np.ones(size + 1), SAMPLE, seed=0)
        model.train()
        runs[step, ""] = partial(training_step, model, optimizer, batch)
        runs[f"step, {SAMPLE:,} items drawn", ""] = lambda: training_step(model, optimizer, batch, sampler.draw())
        if size <= LOGITS:
            runs[step, "with torch's cross_entropy"] = partial(full_step, model, optimizer, batch)
    return runs


def full_step(model: LRURecForRetrieval, optimizer: torch.optim.Optimizer, batch: list[np.ndarray]) -> None:
    """`training_step`, but that the loss is made of a table of all logits."""
    length = max(map(len, batch))
    items, labels = (pad_left([one[part] for one in batch], length) for part in (slice(None, -1), slice(1, None)))
    vectors, counts = model.item_vectors(), labels != 0
    logits = F.linear(model.encode(items, vectors)[counts], vectors, model.bias())
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits, labels[counts]).backward()
    optimizer.step()


PICTURES = {
    "graph": (graph, EDGES, "Costs as the graph grows", "edges of the graph"),
    "history": (history, HISTORY, "Costs as the history grows", "items of the history"),
    "list": (candidates, LIST, "Costs as the list grows", "candidates of the list"),
    "catalogue": (catalogue, CATALOGUE, "Costs as the catalogue grows", "items of the catalogue"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PICTURES)}; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what was measured before")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(PICTURES)):
        parser.error(f"no picture {unknown}; there are {', '.join(PICTURES)}")
    logging.getLogger("llamarec_lkg").setLevel(logging.ERROR)
    disable_progress_bar()
    names = given.names or list(PICTURES)
    with tqdm(total=sum(len(PICTURES[name][1]) for name in names), unit="size", disable=given.draw) as bar:
        for name in names:
            path = given.output / f"costs-{name}.json"
            if not given.draw:
                runs_at, sizes, title, axis = PICTURES[name]
                curves = Curves(title, axis)
                for size in sizes:
                    bar.set_description(f"{name} {size:,}")
                    curves.measure(size, runs_at(size, partial(curves.goes_on, size=size)))
                    curves.write(path, machine())  # so that what is killed at a large size leaves the smaller ones
                    bar.update()
            draw(path)


if __name__ == "__main__":
    main()
