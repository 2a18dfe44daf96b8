"""Does the graph help, and do personal preferences help it? No language model: retriever, evidence, preferences.

Needs: pip install -e .

    python examples/graph_evidence.py --dataset path/to/ml-latest-small --seeds 42 43 44

Every ranking is over the whole catalogue, for all users; each row adds one thing to the row above it:

    retriever        the first stage alone
    evidence         and the graph's evidence, of the whole history and of the last items, with one set of weights for
                     everybody
    history          and preferences read from each history
    history and id   and a table of weights for single users
    history, rewired graph                    trained and tested on a graph in which items have changed places
    history, graph rewired after training     trained on the real one

Lists to learn from are made and read out of fold: users are parted, and retriever and co-ratings for the users of a
part are fitted on the others. Preferences see no validation target: their epoch is chosen on each user's last training
list. The retriever's epoch is chosen on the validation targets, for all rows alike; the test targets choose nothing.
Interactions of one time stand in the published order, by item id; what a model may learn of that is the same in all
rows.
`outputs/evidence/<data set>/report.json` holds what is printed.
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
VARIANTS = {
    "retriever": {"use_evidence_fusion": False},
    "evidence": {"use_history_preferences": False},
    "history": {},
    "history and id": {"use_user_embedding": True},
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
    dataset_name: str,
    seed: int,
    folder: Path,
    *,
    folds: int = 4,
    per_user: int = 20,
    retriever=None,
    backbone=None,
    progress: bool = True,
) -> dict:
    """Per-target measures of every row, for validation and test. Of the backbone only the tokenizer is loaded."""
    config = RunConfig.from_mapping(
        {
            "output_dir": str(folder / f"seed-{seed}"),
            "data": {"dataset": dataset_name},
            "preprocessing": {"ties": "item_id"},
            "retriever": {"seed": seed, **(retriever or {})},
            "backbone": backbone or {},
            "examples": {"folds": folds, "per_user": per_user, "fuse_candidates": False},
            "prompt": {"num_candidates": 52},
            "model": {"use_language_model": False, "use_user_embedding": True, "use_popularity": False},
        }
    )
    # 1. data, graph, retrievers, lists to learn from
    workflow = Workflow(config, progress=progress)
    data = workflow.prepare()
    first_stage = workflow.train_retriever()

    def rewire(graph):
        return graph.shuffle_items(seed)

    def lists(processor, change=None) -> list[list[RankingExample]]:
        """Lists to learn from, and each user's last one, which chooses the epoch."""
        found = workflow.training_lists(processor, change).best
        last = {e.user: row for row, e in sorted(enumerate(found), key=lambda pair: len(pair[1].history))}
        aside = set(last.values())
        return [[e for row, e in enumerate(found) if (row in aside) == chosen] for chosen in (False, True)]

    def fitted(processor, parts, variant) -> tuple:
        batches = [heads_batch(processor, part, progress=progress) for part in parts]
        torch.manual_seed(seed)
        settings = {**config.model, "use_user_embedding": False, **VARIANTS[variant]}
        model = LlamaRecLKGForRanking(processor.model_config(**settings))
        fit_heads(model, *batches, epochs=60, learning_rate=5e-3, weight_decay=0.3, patience=15, seed=seed,
                  progress=progress)  # fmt: skip
        return model, processor

    # 2. every row on the same targets
    processor, rewired = workflow.build_processor(), workflow.build_processor(rewire(data.graph))
    parts = lists(processor)
    models = {name: fitted(processor, parts, name) for name in VARIANTS}
    models["history, rewired graph"] = fitted(rewired, lists(rewired, rewire), "history")
    models["history, graph rewired after training"] = (
        models["history"][0],
        processor.with_knowledge_graph(rewired.knowledge_graph),
    )
    return {
        split: {name: measure(*pair, first_stage, targets(data.dataset, split)) for name, pair in models.items()}
        for split in ("validation", "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Graph evidence over a retriever, without a language model.")
    parser.add_argument("--dataset", default="ml-100k", help="name, folder or Hub id")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--folds", type=int, default=4, help="parts of the users, each held out once")
    parser.add_argument("--per-user", type=int, default=20, help="lists of each user that preferences learn from")
    parser.add_argument("--output", type=Path, default=Path("outputs/evidence"))
    args = parser.parse_args()
    folder = args.output / Path(args.dataset).name
    sizes = {"folds": args.folds, "per_user": args.per_user}
    runs = [one_seed(args.dataset, seed, folder, **sizes) for seed in args.seeds]
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
        _, over_evidence = comparison_rows(
            {name: measures[name] for name in ("evidence", "history")}, reference="evidence"
        )
        report[split] = {"rows": rows, "history_to_evidence": over_evidence}
        count = len(measures["retriever"]["nll"])
        title = f"{Path(args.dataset).name}, {split}, {count:,} users, whole catalogue, mean of seeds {args.seeds}"
        print(f"\n{title}\n", *table(rows, ("mrr@10", "ndcg@10", "recall@10", "recall@20", "nll")), sep="\n")
        for metric in ("nll", "ndcg@10"):
            difference = over_evidence["difference_to_evidence"][metric]
            low, high = over_evidence["difference_ci95"][metric]
            print(f"history minus evidence, {metric}: {difference:+.4f} ({low:+.4f} to {high:+.4f})")
        draw(Report({"dataset": title, "retrieved": count, "targets": count}, rows, []), folder / f"{split}.png")
    write_json(folder / "report.json", report)
    print(f"\nwritten to {folder}: report.json, validation.png, test.png")


if __name__ == "__main__":
    main()
