"""A saved ranker in miniature, rows to rank with it, and who ends that, for tests and benchmarks of batch ranking."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny import backbone, examples, processor

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval


ROOT = Path(__file__).resolve().parents[1]
SMALL = {"shard_rows": 8, "batch_size": 3, "k": 3}
AS_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


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


def start(
    model: Path,
    path: Path,
    output: Path,
    *options: str,
    launcher: Sequence[str] = (),
    progress: bool = False,
    folder: Path | None = None,
) -> subprocess.Popen:
    """`llamarec-lkg rank` in a process of its own, of small shards, in a folder."""
    command = [sys.executable, *launcher, "-m", "llamarec_lkg.cli", "rank", "--model", model, "--input", path]
    command += ["--output", output, *AS_OPTIONS, *options, *([] if progress else ["--no-progress"])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, cwd=folder)


def finish(process: subprocess.Popen) -> None:
    """Wait for it; its words where it fails."""
    said = process.communicate()[1]
    assert process.returncode == 0, said


def rank_with_kills(model: Path, path: Path, output: Path, kills: int, seed: int = 0) -> None:
    """Rank a file, ended without a warning `kills` times: one time in four while it starts, else while it ranks."""
    chance = random.Random(seed)
    for _ in range(kills):
        there = len(list(output.glob("part-*.parquet")))
        process = start(model, path, output)
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0, 4))
        else:
            while process.poll() is None and len(list(output.glob("part-*.parquet"))) == there:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it had ended before: {process.stderr.read()}"
    finish(start(model, path, output))


def lost_or_doubled(users: Sequence[str], output: Path) -> int:
    """Of how many users a ranked list is not there, or is there twice, of those who have one each."""
    found = pd.read_parquet(output)
    times = found[found["rank"] == 1]["user"].value_counts().reindex(users, fill_value=0)
    doubled = found[found.duplicated(["user", "rank"])]["user"].nunique()
    return int((times == 0).sum()) + max(int((times > 1).sum()), doubled)
