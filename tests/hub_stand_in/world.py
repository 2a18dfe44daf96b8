"""What the tests of pushing and loading share: a ranker whose users have names that can be searched for."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas as pd
import torch
from peft import LoraConfig
from tiny import SETTINGS, backbone, examples, tokenizer

from llamarec_lkg import (
    KnowledgeGraph,
    LlamaRecLKGForRanking,
    LlamaRecLKGProcessor,
    LRURecConfig,
    LRURecForRetrieval,
)
from llamarec_lkg.data.schema import UNKNOWN_USER
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.serving.recommender import Recommender


BACKBONE, RANKER = "tester/backbone", "tester/ranker"
USERS = [f"{name}@example.org" for name in ("ada", "bob", "cyd", "dan")]
STAMP = 1_234_567_000
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def named_dataset(make_dataset, film_items):
    """Four named users, six films, five interactions each: user `u` starts at film `u` and goes round."""
    rows = [
        (user, (number + step) % 6 + 1, STAMP + 100 * step + number, 1.0 + step)
        for number, user in enumerate(USERS)
        for step in range(5)
    ]
    return make_dataset(rows, film_items)


def processor(dataset, **settings) -> LlamaRecLKGProcessor:
    """One that knows its users by name, and its items by co-ratings of at least two people."""
    graph, items = KnowledgeGraph.from_dataset(dataset), dataset.items
    graph = graph.with_co_ratings(co_ratings(dataset, min_people=2))
    settings = {**SETTINGS, **settings}
    return LlamaRecLKGProcessor(tokenizer(), graph, items.ids, items.titles, dataset.user_ids, **settings)


def push_backbone(name: str = BACKBONE, **sizes) -> None:
    backbone(**sizes).push_to_hub(name)


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight that starts at nothing a value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("preference.", "readout.key.", "readout.out.")) or "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def ranker(
    proc: LlamaRecLKGProcessor, name: str = BACKBONE, adapter: bool = True, **settings
) -> LlamaRecLKGForRanking:
    """Around a backbone that is on the Hub, with an adapter; as if trained."""
    config = proc.model_config(**{"lm_scale": 1.0, "evidence_weight": 2.0, **settings})
    model = LlamaRecLKGForRanking.from_backbone(name, config, dtype=torch.float32)
    if adapter:
        model.add_adapter(LORA)
    randomize(model)
    return model.eval()


def recommender(dataset, **options) -> Recommender:
    proc = processor(dataset).fit(examples(dataset))
    torch.manual_seed(0)
    retriever = LRURecRetriever(LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).eval())
    return Recommender(ranker(proc, **options), proc, retriever)


def logits(model, proc, dataset, known: bool = False) -> torch.Tensor:
    """Scores of lists of unknown users, or of the known ones."""
    lists = examples(dataset) if known else [replace(example, user=UNKNOWN_USER) for example in examples(dataset)]
    with torch.no_grad():
        return model(**proc(lists)).logits


def readable(files: dict[str, bytes]) -> bytes:
    """All that was uploaded, in one: the bytes as they are, and tables as text, since parquet compresses."""
    tables = [
        pd.read_parquet(io.BytesIO(data)).to_csv().encode()
        for path, data in files.items()
        if path.endswith(".parquet")
    ]
    return b"\n".join([*files.values(), *(path.encode() for path in files), *tables])


def uploaded(hub, repo_id: str = RANKER, **revision) -> dict[str, bytes]:
    """The files of a repository without what every one begins with."""
    files = hub.files(repo_id, **revision)
    files.pop(".gitattributes")
    return files
