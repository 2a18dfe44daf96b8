"""Does the graph help, and do personal preferences help it? No language model: retriever, evidence, preferences.

Needs: pip install -e .

    python examples/graph_evidence.py --dataset path/to/ml-latest-small --seeds 42 43 44

For every seed two retrievers are trained (one that has not seen the lists that preferences learn from); every ranking
is over the whole catalogue, for all users. `outputs/evidence/<data set>/report.json` holds what is printed.
Preferences
see no validation target: their epoch is chosen on each user's last training list. The retriever's epoch is chosen on
the validation targets, for all rows alike; the test targets choose nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.evaluation.metrics import metrics_per_user, target_ranks
from llamarec_lkg.evaluation.report import Report, comparison_rows, draw, table
from llamarec_lkg.ranking.scoring import catalogue_scores
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.warm_up import fit_heads, heads_batch
from llamarec_lkg.training.workflow import Workflow
from llamarec_lkg.utils.files import write_json


KS = (1, 5, 10, 20)
# which inputs the preference module has; "retriever" has no evidence at all
VARIANTS = {
    "retriever": {"use_evidence_fusion": False},
    "global": {"use_history_preferences": False, "use_user_embedding": False},
    "history": {"use_user_embedding": False},
    "personal": {},
}


def targets(dataset, split: str) -> list[RankingExample]:
    """One list a target without candidates: history, user, and the target as its only candidate.

    Items of the history are not ranked, so a target that is one of them is left out.
    """
    examples = []
    for position in dataset.positions(split):
        piece = dataset.history(position)
        if dataset.item_sequence[position] in dataset.item_sequence[piece]:
            continue
        examples.append(
            RankingExample(
                user=int(dataset.user_of(position)),
                history=dataset.item_sequence[piece].astype(np.int64),
                ratings=dataset.ratings[piece],
                candidates=dataset.item_sequence[[position]].astype(np.int64),
                retrieval_scores=np.zeros(1, dtype=np.float32),
                label=0,
            )
        )
    return examples


def measure(model, processor, retriever, examples) -> dict[str, np.ndarray]:
    """Metrics and negative log-likelihood (nats) of every target among all items."""
    histories, users = [example.history for example in examples], [example.user for example in examples]
    scores = catalogue_scores(model, processor, retriever, histories, users)
    items = np.array([example.candidates[0] for example in examples])
    likelihood = torch.tensor(scores).log_softmax(1).numpy()[np.arange(len(items)), items]
    return {**metrics_per_user(target_ranks(scores, items), KS), "nll": -likelihood}


def one_seed(
    dataset_name: str, seed: int, holdout: int, folder: Path, *, retriever=None, backbone=None, progress: bool = True
) -> dict:
    """Per-target measures of every row, for validation and test. Of the backbone only the tokenizer is loaded."""
    config = RunConfig.from_mapping(
        {
            "output_dir": str(folder / f"seed-{seed}"),
            "data": {"dataset": dataset_name},
            "retriever": {"seed": seed, **(retriever or {})},
            "backbone": backbone or {},
            "examples": {"holdout": holdout},
            "prompt": {"num_candidates": 52},
            "model": {"use_language_model": False},
        }
    )
    # 1. data, graph, retrievers, honest training lists
    workflow = Workflow(config, progress=progress)
    data = workflow.prepare()
    first_stage = workflow.train_retriever()
    lists, _, train_graph = workflow.training_lists(first_stage)
    latest = {e.user: row for row, e in sorted(enumerate(lists), key=lambda pair: len(pair[1].history))}
    aside = set(latest.values())  # each user's last training list chooses the epoch
    parts = [[e for row, e in enumerate(lists) if (row in aside) == chosen] for chosen in (False, True)]

    def fitted(graph, train_graph, variant) -> tuple:
        processor = workflow.build_processor().with_knowledge_graph(graph)
        train_processor = processor.with_knowledge_graph(train_graph)
        processor.set_evidence_scale(train_processor.fit(parts[0]).evidence_scale)
        batches = [heads_batch(train_processor, part, progress=progress) for part in parts]
        torch.manual_seed(seed)
        model = LlamaRecLKGForRanking(processor.model_config(**config.model, **VARIANTS[variant]))
        fit_heads(model, *batches, epochs=60, learning_rate=5e-3, weight_decay=0.3, patience=15, seed=seed,
                  progress=progress)  # fmt: skip
        return model, processor

    # 2. every row on the same targets
    shuffled = [graph.shuffle_items(seed) for graph in (data.graph, train_graph)]
    models = {name: fitted(data.graph, train_graph, name) for name in VARIANTS}
    models["personal, shuffled graph"] = fitted(*shuffled, "personal")
    model, processor = models["personal"]
    models["personal, graph shuffled after training"] = model, processor.with_knowledge_graph(shuffled[0])
    return {
        split: {name: measure(*pair, first_stage, targets(data.dataset, split)) for name, pair in models.items()}
        for split in ("validation", "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Graph evidence over a retriever, without a language model.")
    parser.add_argument("--dataset", default="ml-100k", help="name, folder or Hub id")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument(
        "--holdout", type=int, default=8, help="training interactions a user that preferences learn from"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/evidence"))
    args = parser.parse_args()
    if args.holdout < 1:
        parser.error("--holdout is at least 1: preferences learn from lists that a retriever has not seen")
    folder = args.output / Path(args.dataset).name
    runs = [one_seed(args.dataset, seed, args.holdout, folder) for seed in args.seeds]
    # 3. each user's mean over seeds, then intervals over users
    report: dict = {"arguments": {**vars(args), "output": str(args.output), "dataset": Path(args.dataset).name}}
    for split in ("validation", "test"):
        measures = {
            name: {
                metric: np.mean([run[split][name][metric] for run in runs], axis=0) for metric in runs[0][split][name]
            }
            for name in runs[0][split]
        }
        rows = comparison_rows(measures)
        over_global = comparison_rows({name: measures[name] for name in ("global", "personal")}, reference="global")
        report[split] = {"rows": rows, "personal_to_global": over_global[1]}
        count = len(measures["retriever"]["nll"])
        title = f"{Path(args.dataset).name}, {split}, {count:,} users, whole catalogue, mean of seeds {args.seeds}"
        print(f"\n{title}\n", *table(rows, ("mrr@10", "ndcg@10", "recall@10", "recall@20", "nll")), sep="\n")
        for metric in ("nll", "ndcg@10"):
            difference = over_global[1]["difference_to_global"][metric]
            low, high = over_global[1]["difference_ci95"][metric]
            print(f"personal minus global, {metric}: {difference:+.4f} ({low:+.4f} to {high:+.4f})")
        draw(Report({"dataset": title, "retrieved": count, "targets": count}, rows, []), folder / f"{split}.png")
    write_json(folder / "report.json", report)
    print(f"\nwritten to {folder}: report.json, validation.png, test.png")


if __name__ == "__main__":
    main()
