"""The options of all commands. What runs a command is in `cli`; nothing of a model is imported here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn


DASHED_IDS = (
    "Ids that begin with a dash are given as --history=ID --history=ID (likewise --candidates=ID, --user=ID), or all "
    "at the end as --history -- ID ID."
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its options. Ends the process with help, or with what is wrong with the usage."""
    args, unknown = _parser(*argv[:1]).parse_known_args(_with_ids_after_dashes(argv))
    if unknown:
        args.refuse(f"unrecognized arguments: {' '.join(unknown)}")
    return args


class _Parser(argparse.ArgumentParser):
    """A parser whose errors of usage end in a remedy, where there is one."""

    remedy = ""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}. {self.remedy}" if self.remedy else message)


def _with_ids_after_dashes(argv: Sequence[str]) -> list[str]:
    """The arguments after "--" as values of the last list of ids before it, whatever they look like."""
    end = argv.index("--") if "--" in argv else 0
    lists = [place for place in range(end) if argv[place].split("=")[0] in ("--history", "--candidates")]
    if not lists:
        return list(argv)
    at, ids = lists[-1], argv[end + 1 :]
    option = argv[at].split("=")[0]
    alone = bool(ids) and argv[at] == option and argv[at + 1].startswith("--")  # it may not be left without an id
    return [*argv[:at], *argv[at + alone : end], *(f"{option}={raw}" for raw in ids)]


def _parser(chosen: str = "") -> argparse.ArgumentParser:
    description = "Recommendation ranking with a language model and a graph."
    parser = _Parser(prog="llamarec-lkg", description=description)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, help: str, more: str = "") -> _Parser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.{more}")
        command.add_argument("--verbose", action="store_true", help="say what is being done")
        command.set_defaults(refuse=command.error)
        if name == chosen and name in ("convert", "push-dataset"):
            from .data.convert import describe_formats  # whose module the command imports in any case

            command.epilog = f"formats:\n{describe_formats()}"
            command.formatter_class = argparse.RawDescriptionHelpFormatter
        return command

    _add_stage(add("prepare", "load, filter and split the data, and build the knowledge graph"))
    _add_stage(add("train-retriever", "train the first stage"))
    train = add("train", "fine-tune the ranker (and what it needs first)")
    _add_stage(train)
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    _add_stage(add("evaluate", "write report.json, report.md and report.png (and what they need first)"))

    text = "run every seed of a configuration, and report all rows with their intervals"
    command = add("benchmark", text, " What was cut off goes on where it was.")
    _add_stage(command)

    command = add("recommend", "rank items for one history")
    _add_request(command, "*")
    text = "rank these, not what the retriever finds"
    command.add_argument("--candidates", nargs="*", action="extend", metavar="ITEM", help=text)
    text = "whether what is in the history may come again; by default as the ranker was trained"
    command.add_argument("--repeats", choices=("allowed", "excluded"), help=text)
    command.add_argument("-k", type=int, default=10, help="how many items to show")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print records for machines")
    form.add_argument("--sentences", action="store_true", help="say in a sentence why each item is there")
    command.add_argument("--draw", metavar="PNG", help="draw the paths from the history to the items")
    _add_remote(command)

    text = "rank items for every row of a parquet file, into a folder of parquet files"
    _add_batch(add("rank", text, " What was cut off goes on where it was."))

    text = "answer requests over HTTP, of many clients at once"
    _add_server(add("serve", text, " Its pages and examples are at /docs."))

    command = add("preferences", "print and draw which relations of the graph a user follows")
    _add_request(command, "+")
    text = "where to draw it; by default preferences.png, with --json nowhere"
    command.add_argument("--output", metavar="PNG", help=text)
    command.add_argument("--json", action="store_true", help="print a record for machines")

    text = "write a ranker's language model for servers that know nothing of rankers"
    command = add("export", text, " It is a plain folder of transformers, in a new or empty folder.")
    _add_model(command)
    text = "with its adapter merged into it, the one form there is"
    command.add_argument("--merged", action="store_true", required=True, help=text)
    command.add_argument("--output", required=True, metavar="FOLDER", help="new or empty folder")
    text = "of the weights, such as bfloat16; by default what the ranker was saved in"
    command.add_argument("--dtype", help=text)

    text = "write the prompt of every row of a parquet file, of a ranker with letters"
    command = add("prompts", text, " A letter's log-probability after it is what the model says of a candidate.")
    _add_model(command)
    _add_input(command)
    command.add_argument("--output", required=True, metavar="FILE", help="a name that ends in .jsonl or .parquet")

    command = add("demo", "try a trained model in the browser: its lists, their reasons, and other preferences")
    command.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    _add_first_history(command)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # as Gradio itself has it
    command.add_argument("--host", default=host, help="address to listen at; 0.0.0.0 for other machines")
    command.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    command.add_argument("--no-browser", action="store_true", help="open no browser, only print the address")

    text = "push a trained ranker, with its processor and retriever, to the Hub, as one commit"
    command = add("push", text, " What is about single users stays here unless it is asked for.")
    command.add_argument("folder", help="what `llamarec-lkg train` or the trainer wrote")
    _add_commit(command)
    command.add_argument("--share-users", action="store_true", help="user ids and the weights of single users, too")
    text = "delete the repository's retriever, where the folder has none"
    command.add_argument("--remove-retriever", action="store_true", help=text)
    text = "id on the Hub of a backbone that was loaded from a folder of this machine"
    command.add_argument("--backbone", metavar="ID", help=text)

    text = "publish the demo of a model on the Hub as a Space, as one commit"
    command = add("push-space", text, " Done again, it replaces app, requirements and README.md of the Space.")
    _add_commit(command)
    command.add_argument("--model", required=True, metavar="ID", help="Hub id of a model that was pushed")
    _add_first_history(command)

    text = "turn a raw data set into the library's tables"
    command = add("convert", text, " It is read batch by batch and written as parquet tables with a card.")
    _add_source(command)
    command.add_argument("target", help="new or empty folder for interactions, items and triples")
    command.add_argument("--overwrite", action="store_true", help="replace what `convert` wrote there before")
    for kind in ("user", "item"):
        text = f"drop {kind}s with fewer (with either bound, also items nobody touched)"
        command.add_argument(f"--min-{kind}-interactions", type=int, default=1, metavar="N", help=text)

    text = "publish a data set on the Hub, with a card, as one commit"
    command = add("push-dataset", text, " Users are numbered in no order of their ids, or left out.")
    _add_source(command)
    _add_commit(command)
    command.add_argument("--keep-user-ids", action="store_true", help="publish user ids as they are")
    text = "items and triples only, nothing about people"
    command.add_argument("--no-interactions", action="store_false", dest="include_interactions", help=text)
    command.add_argument("--language", metavar="CODE", help='of the titles, "en" for example')

    text = "write MRR, NDCG and Recall as folders for Spaces, which evaluate.load reads"
    command = add("export-metrics", text)
    command.add_argument("folder", help="where mrr, ndcg and recall go")
    command.add_argument("--owner", default="your-name", help="account that the examples in their cards name")
    return parser


def _add_stage(command: argparse.ArgumentParser) -> None:
    text = "YAML file, as in examples/configs; given again, a file that changes the ones before it"
    command.add_argument("--config", action="append", help=text)
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example training.seed=1")


def _add_request(command: _Parser, count: str) -> None:
    command.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    text = "raw item ids, oldest first"
    command.add_argument("--history", nargs=count, action="extend", required=True, metavar="ITEM", help=text)
    command.add_argument("--user", help="raw user id, for a model that has weights of single users")
    command.epilog = command.remedy = DASHED_IDS


def _add_first_history(command: _Parser) -> None:
    text = "raw item ids to begin with, oldest first; by default what most people chose"
    command.add_argument("--history", nargs="+", action="extend", metavar="ITEM", help=text)
    command.epilog = command.remedy = DASHED_IDS


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    command.add_argument("--revision", help="branch, tag or commit of a model on the Hub")


def _add_input(command: argparse.ArgumentParser) -> None:
    text = "parquet file, or folder of them, with columns user, history (list of item ids) and, if any, candidates"
    command.add_argument("--input", required=True, metavar="PARQUET", help=text)


def _add_remote(command: argparse.ArgumentParser) -> None:
    text = "address of a server that holds the exported language model, such as http://localhost:8000/v1"
    command.add_argument("--remote", metavar="URL", help=text)
    text = "the name it is served under; by default the first that the server names"
    command.add_argument("--remote-model", metavar="NAME", help=text)
    text = "log-probabilities to ask it for"
    command.add_argument("--top-logprobs", type=int, default=20, metavar="N", help=text)


def _add_batch(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    _add_input(command)
    text = "new folder, or one that this command was cut off in"
    command.add_argument("--output", required=True, metavar="FOLDER", help=text)
    command.add_argument("-k", "--k", type=int, default=10, help="how many items of each row to write")
    text = "a column of reasons that names N paths for each item, 3 by default"
    command.add_argument("--reasons", type=int, nargs="?", const=3, metavar="N", help=text)
    text = "whether what is in the history may come again; by default as the ranker was trained"
    command.add_argument("--repeats", choices=("allowed", "excluded"), help=text)
    text = "pass over ids that the model does not know; by default their rows are refused, which stops no other"
    command.add_argument("--leave-out-unknown", action="store_true", help=text)
    command.add_argument("--batch-size", type=int, default=32, help="rows in one forward pass")
    command.add_argument("--shard-rows", type=int, default=10_000, help="rows of the input in each file of the output")
    command.add_argument("--device", help='such as "cpu" or "cuda:1"; by default a GPU where there is one')
    text = "this process (several under `accelerate launch`), or the workers of a Ray cluster"
    command.add_argument("--engine", choices=("local", "ray"), default="local", help=text)
    text = "of Ray; by default one for each GPU, or without GPUs one for each machine"
    command.add_argument("--workers", type=int, metavar="N", help=text)
    command.add_argument("--no-progress", action="store_true", help="show no bar")
    _add_remote(command)


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="folder or Hub id of a trained model")
    command.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    text = "a further adapter on the same backbone, asked at /adapters/NAME/...; may be given again"
    command.add_argument("--adapter", action="append", default=[], metavar="NAME=MODEL", help=text)
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for other machines")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--device", help='such as "cpu" or "cuda:1"; by default a GPU where there is one')
    bounds = {
        "batch-size": (int, "lists in one forward pass"),
        "batch-wait": (float, "seconds that a batch waits for others, where others came before"),
        "queue-size": (int, "lists that may wait; further ones are answered 429"),
        "timeout": (float, "seconds for an answer; then 504"),
        "max-history": (int, "items of a history"),
        "max-candidates": (int, "candidates of a list"),
    }
    for name, (kind, text) in bounds.items():
        command.add_argument(f"--{name}", type=kind, metavar="N", default=argparse.SUPPRESS, help=text)
    command.epilog = "With LLAMAREC_LKG_API_KEY in the environment clients have to send that key."


def _add_source(command: argparse.ArgumentParser) -> None:
    text = "folder of raw files (MovieLens, Amazon Reviews, RecBole, tables), one of them, or a name"
    command.add_argument("source", help=text)
    command.add_argument("--format", metavar="NAME", help="one of those below; by default the file names tell")
    command.add_argument("--triples", metavar="FILE", help="further facts: .csv, .tsv, .parquet or .graphml")
    for name, text in (("license", 'a name of the Hub ("cc-by-4.0") or any text'), ("citation", "as text")):
        text += "; replaces what the source says, once for each source"
        command.add_argument(f"--{name}", action="append", metavar="TEXT", help=text)


def _add_commit(command: argparse.ArgumentParser) -> None:
    command.add_argument("repo_id", help="owner/name; made if it does not exist")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", help="branch to write to, made if it does not exist")
    command.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
    command.add_argument("--commit-message", metavar="TEXT")
