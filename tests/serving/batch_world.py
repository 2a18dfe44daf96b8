"""A saved ranker in miniature and rows to rank with it, for tests and benchmarks of batch ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny import backbone, examples, processor

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval


def save_ranker(dataset, folder: Path, *, retriever: bool = True, **sizes) -> Path:
    """Language model, graph and retriever over the items of a data set."""
    backbone(**sizes).save_pretrained(folder / "backbone")
    proc = processor(dataset).fit(examples(dataset))
    ranker = LlamaRecLKGForRanking.from_backbone(str(folder / "backbone"), proc.model_config(evidence_weight=2.0))
    ranker.save_pretrained(folder / "run", include_backbone=False)
    proc.save_pretrained(folder / "run")
    if retriever:
        torch.manual_seed(0)
        found = LRURecForRetrieval(LRURecConfig(num_items=dataset.num_items, hidden_size=8))
        found.save_pretrained(folder / "run" / "retriever")
    return folder / "run"


def make_rows(count: int, items: list, seed: int = 0) -> pd.DataFrame:
    """Users u0, u1, ... with up to four items of those."""
    generator = np.random.default_rng(seed)
    histories = [
        [str(items[place]) for place in generator.permutation(len(items))[: generator.integers(0, 5)]]
        for _ in range(count)
    ]
    return pd.DataFrame({"user": [f"u{number}" for number in range(count)], "history": histories})
