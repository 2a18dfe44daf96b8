"""Train the first stage alone, with several seeds, and print its test metrics beside popularity.

Needs: pip install -e .

    python examples/train_retriever.py --dataset ml-100k --seeds 42 43 44 --max-steps 2000 --learning-rate 0.002
    python examples/train_retriever.py --dataset ml-latest-small --seeds 42 43 44
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from llamarec_lkg import load_dataset_bundle, prepare_dataset
from llamarec_lkg.retrieval.base import PopularityRetriever
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.retrieval.training import LRURecTrainingArguments, evaluate_retriever, train_lrurec
from llamarec_lkg.utils.files import file_name, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description="Train LRURec with several seeds.")
    parser.add_argument("--dataset", default="ml-100k", help="name, folder or Hub id")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--max-steps", type=int, default=LRURecTrainingArguments.max_steps)
    parser.add_argument("--learning-rate", type=float, default=LRURecTrainingArguments.learning_rate)
    parser.add_argument("--output", type=Path, default=Path("outputs/retriever"), help="folder for the json records")
    args = parser.parse_args()

    # 1. data
    dataset = prepare_dataset(load_dataset_bundle(args.dataset))
    rows = [{"name": "popularity", **evaluate_retriever(PopularityRetriever.from_dataset(dataset), dataset, "test")}]
    # 2. one model a seed
    for seed in args.seeds:
        settings = LRURecTrainingArguments(seed=seed, max_steps=args.max_steps, learning_rate=args.learning_rate)
        started = time.monotonic()
        model, _ = train_lrurec(dataset, settings)
        seconds = time.monotonic() - started
        rows.append(
            {"name": f"seed {seed}", "seconds": seconds, **evaluate_retriever(LRURecRetriever(model), dataset, "test")}
        )
    # 3. their mean
    metrics = [name for name in rows[0] if name != "name"]
    rows.append({"name": "mean of seeds", **{m: float(np.mean([row[m] for row in rows[1:]])) for m in metrics}})
    shown = ["mrr@10", "ndcg@10", "recall@10", "recall@20"]
    print(f"{dataset.name}: {dataset.num_users} users, {dataset.num_items} items, test split")
    for row in rows:
        print(f"{row['name']:<14}", json.dumps({name: round(row[name], 4) for name in shown}))
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(
        args.output / f"{file_name(dataset.name)}.json",
        {"arguments": vars(args) | {"output": str(args.output)}, "rows": rows},
    )


if __name__ == "__main__":
    main()
