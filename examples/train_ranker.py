"""Train and evaluate a ranker from a YAML file, in one process or in many.

Needs: pip install -e .

    accelerate launch examples/train_ranker.py --config examples/configs/ml-100k.yaml
    torchrun --standalone --nproc_per_node 2 examples/train_ranker.py --config examples/configs/ml-100k.yaml

Six stages, from data to report; each is reused while nothing it depends on has changed.
"""

import argparse
import logging

from llamarec_lkg.evaluation.report import table, verdict
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate a ranker.")
    parser.add_argument(
        "--config", action="append", required=True, help="give it again to lay a file over those before it"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    workflow = Workflow(RunConfig.from_yaml(args.config, args.overrides))
    report = workflow.run()
    if workflow.state.is_main_process:
        print(f"{workflow.prepare().bundle.name}, {workflow.state.num_processes} process(es)")
        print("\n".join(table(report.rows)))
        print(verdict(report.row("ranker")))


if __name__ == "__main__":
    main()
