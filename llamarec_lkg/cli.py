"""The command line: `llamarec-lkg prepare | train-retriever | train | evaluate | recommend | ...`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.convert import describe_formats
from .training.run_config import RunConfig
from .utils.errors import LKGError


if TYPE_CHECKING:
    from .data.raw_dataset import RawDataset


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Expected failures print one clear line instead of a traceback."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    try:
        args.run(args)
    except (LKGError, OSError) as error:  # OSError: what the Hub's client raises for a name it cannot find
        print(f"llamarec-lkg {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llamarec-lkg", description="Recommendation ranking with a language model and a graph."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stages = {
        "prepare": (_prepare, "load, filter and split the data, and build the knowledge graph"),
        "train-retriever": (_train_retriever, "train the first stage"),
        "train": (_train, "fine-tune the ranker (and what it needs first)"),
        "evaluate": (_evaluate, "write report.json, report.md and report.png (and what they need first)"),
    }
    for name, (function, text) in stages.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", help="YAML file, as in examples/configs")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example training.seed=1")
        command.set_defaults(run=function)
        if name == "train":
            command.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    recommend = commands.add_parser(
        "recommend", help="rank items for one history", description="Rank items for one history."
    )
    recommend.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    recommend.add_argument("--history", nargs="*", default=[], metavar="ITEM", help="raw item ids, oldest first")
    recommend.add_argument("--user", help="raw user id; without --history, a known user's ratings are it")
    recommend.add_argument(
        "--candidates", nargs="*", metavar="ITEM", help="rank these instead of what the retriever finds"
    )
    recommend.add_argument("-k", type=int, default=10, help="how many items to show")
    recommend.add_argument("--json", action="store_true", help="print records for machines")
    recommend.add_argument("--sentences", action="store_true", help="say in a sentence why each item is there")
    recommend.add_argument("--draw", metavar="PNG", help="draw the paths from the history to the items")
    recommend.set_defaults(run=_recommend)
    text = "show which relations of the graph a user follows"
    preferences = commands.add_parser("preferences", help=text, description=f"Print and draw: {text}.")
    preferences.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    preferences.add_argument("--user", help="raw user id; without --history, the graph's ratings are the history")
    preferences.add_argument("--history", nargs="*", metavar="ITEM", help="raw item ids, oldest first")
    preferences.add_argument(
        "--output", metavar="PNG", help="where to draw it; by default preferences.png, with --json nowhere"
    )
    preferences.add_argument("--json", action="store_true", help="print a record for machines")
    preferences.set_defaults(run=_preferences)
    convert = commands.add_parser(
        "convert",
        help="turn a raw data set into the library's tables",
        description="Read a raw data set batch by batch and write it as parquet tables with a card.",
        **_formats_below(),
    )
    _add_source(convert)
    convert.add_argument("target", help="new or empty folder for interactions, items and triples")
    convert.add_argument("--overwrite", action="store_true", help="replace what `convert` wrote there before")
    for kind in ("user", "item"):
        text = f"drop {kind}s with fewer (with either bound, also items nobody touched)"
        convert.add_argument(f"--min-{kind}-interactions", type=int, default=1, metavar="N", help=text)
    convert.set_defaults(run=_convert)
    _add_push(commands)
    _add_push_dataset(commands)
    text = "write MRR, NDCG and Recall as folders for Spaces, which evaluate.load reads"
    metrics = commands.add_parser("export-metrics", help=text, description=text)
    metrics.add_argument("folder", help="where mrr, ndcg and recall go")
    metrics.add_argument("--owner", default="your-name", help="account that the examples in their cards name")
    metrics.set_defaults(run=_export_metrics)
    for command in commands.choices.values():
        command.add_argument("--verbose", action="store_true", help="say what is being done")
    return parser


def _formats_below() -> dict[str, Any]:
    return {
        "epilog": f"formats:\n{describe_formats()}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", help="folder of raw files (MovieLens, Amazon Reviews, RecBole, tables), one of them, or a name"
    )
    command.add_argument("--format", metavar="NAME", help="one of those below; by default the file names tell")
    command.add_argument("--triples", metavar="FILE", help="further facts: .csv, .tsv, .parquet or .graphml")
    for name, text in (("license", 'a name of the Hub ("cc-by-4.0") or any text'), ("citation", "as text")):
        text += "; replaces what the source says, once for each source"
        command.add_argument(f"--{name}", action="append", metavar="TEXT", help=text)


def _add_push_dataset(commands: argparse._SubParsersAction) -> None:
    text = "publish a data set on the Hub, with a card, as one commit"
    push = commands.add_parser(
        "push-dataset",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Users are numbered in no order of their ids, or left out.",
        **_formats_below(),
    )
    _add_source(push)
    push.add_argument("repo_id", help="owner/name; made if it does not exist")
    _add_commit(push)
    push.add_argument("--keep-user-ids", action="store_true", help="publish user ids as they are")
    text = "items and triples only, nothing about people"
    push.add_argument("--no-interactions", action="store_false", dest="include_interactions", help=text)
    push.add_argument("--language", metavar="CODE", help='of the titles, "en" for example')
    push.set_defaults(run=_push_dataset)


def _add_commit(push: argparse.ArgumentParser) -> None:
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="branch to write to, made if it does not exist")
    push.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
    push.add_argument("--commit-message", metavar="TEXT")


def _add_push(commands: argparse._SubParsersAction) -> None:
    text = "push a trained ranker, with its processor and retriever, to the Hub, as one commit"
    push = commands.add_parser(
        "push",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. What is about people stays here unless asked for.",
    )
    push.add_argument("folder", help="what `llamarec-lkg train` or the trainer wrote")
    push.add_argument("repo_id", help="owner/name; made if it does not exist")
    _add_commit(push)
    push.add_argument("--share-users", action="store_true", help="user ids, and the weights of single users")
    text = "delete the repository's retriever, where the folder has none"
    push.add_argument("--remove-retriever", action="store_true", help=text)
    push.add_argument(
        "--backbone", metavar="ID", help="id on the Hub of a backbone that was loaded from a folder of this machine"
    )
    push.set_defaults(run=_push)


def _workflow(args: argparse.Namespace):
    from .training.workflow import Workflow

    return Workflow(RunConfig.from_yaml(args.config, args.overrides))


def _source(args: argparse.Namespace) -> RawDataset:
    from .data.facts import with_facts
    from .data.streaming import open_source

    raw = open_source(args.source, format=args.format)
    return with_facts(raw, args.triples) if args.triples else raw


def _convert(args: argparse.Namespace) -> None:
    from .data.k_core import filter_core
    from .hub.push_dataset import write_dataset

    raw = _source(args)
    filtered = max(args.min_user_interactions, args.min_item_interactions) > 1
    if filtered:
        raw = filter_core(raw, args.min_user_interactions, args.min_item_interactions)
    card = write_dataset(
        raw,
        args.target,
        overwrite=args.overwrite,
        items_with_interactions_only=filtered,
        license=args.license,
        citation=args.citation,
    )
    for table in card.tables:
        print(f"{Path(args.target) / table.name}.parquet: {table.rows:,} rows")


def _prepare(args: argparse.Namespace) -> None:
    workflow = _workflow(args)
    data = workflow.prepare()
    print(f"{data.bundle.name}: {data.dataset.num_users:,} users, {data.dataset.num_items:,} items")
    print(f"graph: {data.graph.describe()}")


def _train_retriever(args: argparse.Namespace) -> None:
    from .retrieval.training import evaluate_retriever

    workflow = _workflow(args)
    retriever = workflow.train_retriever()
    metrics = evaluate_retriever(retriever, workflow.prepare().dataset, "validation")
    print(f"retriever saved in {workflow.folder / 'retriever'}; validation:")
    print(json.dumps({name: round(value, 4) for name, value in metrics.items()}))


def _train(args: argparse.Namespace) -> None:
    print(f"ranker saved in {_workflow(args).train(resume=args.resume)}")


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.report import table, verdict

    workflow = _workflow(args)
    report = workflow.evaluate()
    if workflow.state.is_main_process:
        print("\n".join(table(report.rows)))
        print(verdict(report.row("ranker")))
        print(f"written to {workflow.folder}: report.json, report.md, report.png")


def _recommend(args: argparse.Namespace) -> None:
    from .serving.drawings import draw_reasons
    from .serving.recommender import Recommender

    _require_model(args.model)
    recommender = Recommender.from_pretrained(args.model)
    processor = recommender.processor
    if not args.history and args.user is not None and processor.user_index(args.user):
        args.history = [processor.item_ids[item - 1] for item in processor.known_history(args.user)]
    if args.user is not None and not processor.user_index(args.user):
        print(f"The model does not know user {args.user!r}: the history alone decides.", file=sys.stderr)
    if not args.history:
        print("No history: ranked for nobody in particular, by retriever and titles alone.", file=sys.stderr)
    items = recommender.recommend(args.history, user=args.user, candidates=args.candidates, k=args.k)
    if args.json:
        print(json.dumps([dataclasses.asdict(item) for item in items], ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{item.rank:>3}. {item.sentence()}" if args.sentences else str(item) for item in items))
    if args.draw:
        draw_reasons(items, args.draw)
        print(f"drawn in {args.draw}", file=sys.stderr)


def _preferences(args: argparse.Namespace) -> None:
    from .ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
    from .ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
    from .serving.drawings import draw_preferences
    from .serving.recommender import Recommender

    _require_model(args.model)
    processor = LlamaRecLKGProcessor.from_pretrained(args.model)
    if not processor.relations:
        raise LKGError(f"The graph of {args.model} has no relations, so there is nothing to prefer.")
    history = args.history
    if history is None and args.user is not None:
        history = [processor.item_ids[item - 1] for item in processor.known_history(args.user)]
    if not history:
        raise LKGError(
            "There is no history to read preferences from. Give --history with raw item ids, or --user with a user "
            "whose ratings are in the model's graph."
        )
    recommender = Recommender(LlamaRecLKGForRanking.from_pretrained(args.model, backbone=False), processor)
    found = recommender.preferences(history, user=args.user)
    alone = recommender.preferences(history, user=args.user, use_id=False)
    known = args.user is not None and processor.user_index(args.user) > 0
    if args.json:
        record = {"user": args.user, "known": known, "history": list(history)}
        print(json.dumps({**record, "preferences": found, "history_alone": alone}, ensure_ascii=False, indent=2))
    else:
        who = f"user {args.user}" if known else "an unknown user"
        print(f"Relations that {who} follows, from a history of {len(history)} items:")
        width = max(map(len, found))
        print(f"{'':<{width}}  preference  from the history alone")
        for name, value in found.items():
            print(f"{name:<{width}}  {value:>10.1%}  {alone[name]:>22.1%}  {'#' * round(40 * value)}")
        print(f"All alike would be {1 / len(found):.1%}.")
    output = args.output or (None if args.json else "preferences.png")
    if output:
        title = f"user {args.user}" if known else "unknown user"
        draw_preferences(found, output, f"{title}, history of {len(history)}")
        print(f"drawn in {output}", file=sys.stderr)


def _require_model(name: str) -> None:
    if Path(name).exists() and not (Path(name) / "config.json").exists():
        raise LKGError(f"{name} holds no trained model (no config.json). Run `llamarec-lkg train` first.")
    if not Path(name).exists():
        print(f"There is no folder {name!r} here; looking for it on the Hub.", file=sys.stderr)


def _push(args: argparse.Namespace) -> None:
    from .hub.push import push_folder

    options = ("revision", "create_pr", "commit_message", "backbone", "remove_retriever", "share_users")
    done = push_folder(
        args.folder,
        args.repo_id,
        private=args.private or None,
        **{name: getattr(args, name) for name in options},
    )
    print(done.pr_url or done.commit_url)


def _push_dataset(args: argparse.Namespace) -> None:
    from .hub.push_dataset import push_dataset

    options = ("revision", "create_pr", "include_interactions", "license", "citation", "language")
    given = {name: getattr(args, name) for name in options}
    if args.commit_message is not None:
        given["commit_message"] = args.commit_message
    done = push_dataset(
        _source(args), args.repo_id, private=args.private or None, anonymize=not args.keep_user_ids, **given
    )
    print(done.pr_url or done.commit_url)


def _export_metrics(args: argparse.Namespace) -> None:
    from .evaluation.evaluate_metrics import export_metric_spaces

    for path in export_metric_spaces(args.folder, args.owner):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
