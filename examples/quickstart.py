"""The main job end to end: data, graph, retriever, ranker, report, and recommendations with their reasons.

Needs: make quickstart (which makes the environment), or pip install -e .

    python examples/quickstart.py
    python examples/quickstart.py data.dataset=path/to/folder backbone.model_name_or_path=owner/model

Everything lands in outputs/quickstart. A second run reuses every stage whose inputs have not changed.
"""

import argparse
import logging
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, evaluate and explain a ranker in minutes.")
    parser.add_argument("--config", action="append", help="give it again to lay a file over those before it")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.monotonic()

    # they load for seconds: here, so that Ctrl-C is one line then, too
    from llamarec_lkg import Recommender
    from llamarec_lkg.evaluation.report import table, verdict
    from llamarec_lkg.training.run_config import RunConfig
    from llamarec_lkg.training.workflow import Workflow

    workflow = Workflow(
        RunConfig.from_yaml(args.config or "examples/configs/quickstart.yaml", args.overrides)
    )  # says what it does, stage by stage
    report = workflow.run()
    print("\n".join(table(report.rows)))
    print(verdict(report.row("ranker")))

    print("recommendations for one user, with the paths that spoke for them")
    recommender, dataset = Recommender.from_pretrained(workflow.folder), workflow.prepare().dataset
    position = int(dataset.positions("test")[0])
    raw = [dataset.items.ids[item - 1] for item in dataset.item_sequence[dataset.history(position)]]
    for item in recommender.recommend(raw, k=5):
        print(item)
    print(
        f"everything is in {workflow.folder}: report.md, report.png, README.md (model card), and the model. "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the first stage that is not done", file=sys.stderr)
        sys.exit(130)
