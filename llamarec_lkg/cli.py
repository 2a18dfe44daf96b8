"""The command line: `llamarec-lkg prepare | train-retriever | train | evaluate | recommend | ...`.

A command imports what it needs when it runs, so that help, errors of usage and what needs no model start at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_arguments import parse
from .utils.errors import LKGError


if TYPE_CHECKING:
    from .data.raw_dataset import RawDataset
    from .training.workflow import Workflow


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Expected failures, and Ctrl-C, print one clear line instead of a
    traceback."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    with _noted_interrupts() as interrupts:
        try:
            COMMANDS[args.command](args)
        except (Exception, KeyboardInterrupt) as error:
            # a library whose import is interrupted makes an error of its own of it
            if interrupts or isinstance(error, KeyboardInterrupt):
                print(f"llamarec-lkg {args.command}: interrupted", file=sys.stderr)
                return 130
            if not isinstance(error, LKGError | OSError):  # what the Hub's client raises for a name it cannot find
                raise
            print(f"llamarec-lkg {args.command}: {error}", file=sys.stderr)
            return 1
    return 0


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """A list that each Ctrl-C is added to, besides the `KeyboardInterrupt` that it raises."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as in the background, where it is ignored
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# -- stages of a run --------------------------------------------------------------------------------------------------


def _workflow(args: argparse.Namespace) -> Workflow:
    from .training.run_config import RunConfig
    from .training.workflow import Workflow

    return Workflow(RunConfig.from_yaml(args.config, args.overrides))


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


def _benchmark(args: argparse.Namespace) -> None:
    from .training.benchmark import run_benchmark
    from .training.run_config import RunConfig

    config = RunConfig.from_yaml(args.config, args.overrides)
    report = run_benchmark(config)
    print(report.to_markdown())
    print(f"written to {config.output_dir}: report.json, report.md, report.png")


# -- a trained model --------------------------------------------------------------------------------------------------


def _recommend(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .serving.drawings import draw_reasons
    from .serving.recommender import Recommender
    from .serving.remote import RemoteScorer

    remote = _remote(args)
    recommender = Recommender.from_pretrained(args.model, remote=remote and RemoteScorer(**remote))
    if args.user is not None and not recommender.processor.user_index(args.user):
        print(f"The model has no weights for user {args.user!r}: the history alone decides.", file=sys.stderr)
    asked = {name: getattr(args, name) for name in ("user", "candidates", "repeats", "k")}
    items = recommender.recommend(args.history, **asked)
    if args.json:
        print(json.dumps([dataclasses.asdict(item) for item in items], ensure_ascii=False, indent=2))
    else:
        print("\n".join(f"{item.rank:>3}. {item.sentence()}" if args.sentences else str(item) for item in items))
    if args.draw:
        draw_reasons(items, args.draw)
        print(f"drawn in {args.draw}", file=sys.stderr)


def _remote(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of a `RemoteScorer`, where a server is named."""
    if args.remote is None:
        return None
    return {"base_url": args.remote, "model": args.remote_model, "top_logprobs": args.top_logprobs}


def _rank(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .serving.batch_ranking import end_processes, rank_file

    names = (
        "device",
        "engine",
        "workers",
        "revision",
        "k",
        "repeats",
        "leave_out_unknown",
        "shard_rows",
        "batch_size",
    )
    options = {name: getattr(args, name) for name in names}
    options |= {"num_reasons": args.reasons, "progress": not args.no_progress, "remote": _remote(args)}
    report = rank_file(args.model, args.input, args.output, **options)
    if end_processes():
        print(f"{report} Written to {args.output}.")


def _serve(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .serving.server.options import ServerOptions
    from .serving.server.run import check_place, load_app, serve

    if wrong := [text for text in args.adapter if not all(text.partition("=")[::2])]:
        args.refuse(f"--adapter is {wrong[0]!r}; it is NAME=MODEL")
    names = {field.name for field in dataclasses.fields(ServerOptions)}
    options = ServerOptions(**{name: value for name, value in vars(args).items() if name in names})
    adapters = dict(text.split("=", 1) for text in args.adapter)
    if len(adapters) < len(args.adapter) or any("/" in name for name in adapters):
        args.refuse("each --adapter needs a name of its own, without a slash, which stands in the path of its address")
    check_place(args.host, args.port)
    print(f"{args.model} is loaded, and then served at http://{args.host}:{args.port}", file=sys.stderr)
    try:
        app = load_app(args.model, adapters, options, device=args.device, revision=args.revision)
    except KeyboardInterrupt:
        print(f"llamarec-lkg {args.command}: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # an exit would wait for the thread that loads
    serve(app, host=args.host, port=args.port, grace=options.timeout)


def _preferences(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
    from .ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
    from .serving.drawings import draw_preferences
    from .serving.recommender import Recommender

    processor = LlamaRecLKGProcessor.from_pretrained(args.model)
    if not processor.relations:
        raise LKGError(f"The graph of {args.model} has no relations, so there is nothing to prefer.")
    recommender = Recommender(LlamaRecLKGForRanking.from_pretrained(args.model, backbone=False), processor)
    found = recommender.preferences(args.history, user=args.user)
    alone = recommender.preferences(args.history, user=args.user, use_id=False)
    known = processor.user_index(args.user) > 0
    who = f"user {args.user}" if known else "an unknown user"
    if args.json:
        record = {"user": args.user, "known": known, "history": args.history}
        print(json.dumps({**record, "preferences": found, "history_alone": alone}, ensure_ascii=False, indent=2))
    else:
        print(f"Relations that {who} follows, from a history of {len(args.history)} items:")
        width = max(map(len, found))
        print(f"{'':<{width}}  preference  from the history alone")
        for name, value in found.items():
            print(f"{name:<{width}}  {value:>10.1%}  {alone[name]:>22.1%}  {'#' * round(40 * value)}")
        print(f"All alike would be {1 / len(found):.1%}.")
    output = args.output or (None if args.json else "preferences.png")
    if output:
        draw_preferences(found, output, f"{who}, history of {len(args.history)}")
        print(f"drawn in {output}", file=sys.stderr)


def _demo(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .serving.demo import launch_demo

    at = {"server_name": args.host, "server_port": args.port}
    launch_demo(args.model, history=args.history, inbrowser=not args.no_browser, **at)


def _require_model(name: str) -> None:
    if not Path(name).exists():
        print(f"There is no folder {name!r} here; looking for it on the Hub.", file=sys.stderr)
    elif not (Path(name) / "config.json").exists():
        raise LKGError(f"{name} holds no trained model (no config.json). Run `llamarec-lkg train` first.")


def _push(args: argparse.Namespace) -> None:
    from .hub.push import push_folder

    names = ("revision", "create_pr", "commit_message", "share_users", "remove_retriever", "backbone")
    options = {name: getattr(args, name) for name in names}
    done = push_folder(args.folder, args.repo_id, private=args.private or None, **options)
    print(done.pr_url or done.commit_url)


def _export(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .ranking.merged import export_merged

    print(export_merged(args.model, args.output, dtype=args.dtype, revision=args.revision))


def _prompts(args: argparse.Namespace) -> None:
    _require_model(args.model)
    from .serving.prompt_files import write_prompts

    report = write_prompts(args.model, args.input, args.output, revision=args.revision)
    print(f"{args.output}: prompts of {report.written:,} of {report.rows:,} rows")
    if report.first_reason:
        print(f"The first row without one: {report.first_reason}", file=sys.stderr)


def _push_space(args: argparse.Namespace) -> None:
    from .hub.push_space import push_space

    names = ("revision", "create_pr", "commit_message", "history")
    options = {name: getattr(args, name) for name in names}
    done = push_space(args.repo_id, args.model, private=args.private or None, **options)
    print(done.pr_url or done.commit_url)


# -- data sets and metrics --------------------------------------------------------------------------------------------


def _source(args: argparse.Namespace) -> RawDataset:
    from .data.sources import open_source

    raw = open_source(args.source, format=args.format)
    if args.triples:
        from .data.facts import with_triples

        raw = with_triples(raw, args.triples)
    return raw


def _convert(args: argparse.Namespace) -> None:
    from .data.k_core import filtered
    from .hub.push_dataset import write_dataset

    raw = _source(args)
    bounds = args.min_user_interactions, args.min_item_interactions
    some = max(bounds) > 1
    raw = filtered(raw, *bounds) if some else raw
    said = {"license": args.license, "citation": args.citation}
    card = write_dataset(raw, args.target, overwrite=args.overwrite, items_with_interactions_only=some, **said)
    for table in card.tables:
        print(f"{Path(args.target) / table.name}.parquet: {table.rows:,} rows")


def _push_dataset(args: argparse.Namespace) -> None:
    from .hub.push_dataset import push_dataset

    names = ("revision", "create_pr", "include_interactions", "license", "citation", "language")
    options = {name: getattr(args, name) for name in names} | {"anonymize": not args.keep_user_ids}
    if args.commit_message is not None:
        options["commit_message"] = args.commit_message
    done = push_dataset(_source(args), args.repo_id, private=args.private or None, **options)
    print(done.pr_url or done.commit_url)


def _export_metrics(args: argparse.Namespace) -> None:
    from .evaluation.metric_spaces import export_metric_spaces

    for path in export_metric_spaces(args.folder, args.owner):
        print(path)


COMMANDS = {
    "prepare": _prepare,
    "train-retriever": _train_retriever,
    "train": _train,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "recommend": _recommend,
    "rank": _rank,
    "serve": _serve,
    "preferences": _preferences,
    "export": _export,
    "prompts": _prompts,
    "demo": _demo,
    "push": _push,
    "push-space": _push_space,
    "convert": _convert,
    "push-dataset": _push_dataset,
    "export-metrics": _export_metrics,
}


if __name__ == "__main__":
    sys.exit(main())
