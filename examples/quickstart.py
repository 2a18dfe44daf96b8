"""The main job end to end: data, graph, retriever, ranker, report, and recommendations with their reasons.

Needs: make quickstart (which makes the environment), or pip install -e .

    python examples/quickstart.py
    python examples/quickstart.py data.dataset=path/to/folder backbone.model_name_or_path=owner/model

Everything lands in outputs/quickstart. A second run reuses every stage whose inputs have not changed.
"""

import argparse
import logging
import time

from llamarec_lkg import Recommender
from llamarec_lkg.evaluation.report import table, verdict
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, evaluate and explain a ranker in minutes.")
    parser.add_argument("--config", default="examples/configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.monotonic()

    workflow = Workflow(RunConfig.from_yaml(args.config, args.overrides))
    print("1/5 data and knowledge graph")
    data = workflow.prepare()
    print(f"    {data.bundle.name}: {data.dataset.num_users:,} users, {data.dataset.num_items:,} items")
    print(f"    {data.graph.describe()}")
    print("2/5 retriever")
    workflow.train_retriever()
    print("3/5 ranker")
    folder = workflow.train()
    print("4/5 evaluation")
    report = workflow.evaluate()
    print("\n".join(table(report.rows)))
    print(verdict(report.row("ranker")))

    print("5/5 recommendations for one user, with the paths that spoke for them")
    recommender = Recommender.from_pretrained(folder)
    position = int(data.dataset.positions("test")[0])
    raw = [data.dataset.items.ids[item - 1] for item in data.dataset.item_sequence[data.dataset.history(position)]]
    for item in recommender.recommend(raw, user=data.dataset.user_ids[0], k=5):
        print(item)
    print(
        f"everything is in {folder}: report.md, report.png, README.md (model card), and the model. "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
