"""The server beside the recommender that it serves: one client alone, and many who share forward passes."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from http.client import HTTPConnection
from pathlib import Path

import aiohttp
import torch

from llamarec_lkg import Recommender
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.retrieval.configuration_lrurec import LRURecConfig
from llamarec_lkg.retrieval.modeling_lrurec import LRURecForRetrieval

from .ranker import processor, world
from .runner import Figure, benchmark, in_turns


TESTS = Path(__file__).resolve().parents[1]
CROWD = 200
CLIENTS, EACH = 32, {True: 2, False: 40}  # lists of a client, with the language model and without it


def saved(folder: Path, language_model: bool) -> Path:
    """A ranker on MovieLens-100K that has not been trained, with its retriever."""
    one = processor()
    if language_model:
        config = one.model_config()
        ranker = LlamaRecLKGForRanking.from_backbone(world().backbone, config, dtype=torch.float32)
    else:
        ranker = LlamaRecLKGForRanking(one.model_config(use_language_model=False))
    ranker.save_pretrained(folder, **({"include_backbone": False} if language_model else {}))
    one.save_pretrained(folder)
    found = LRURecForRetrieval(LRURecConfig(num_items=world().dataset.num_items))
    found.save_pretrained(folder / "retriever")
    return folder


async def answered(address: str, bodies: list[dict], clients: int) -> None:
    """Clients, each of whom asks for its next list when it has one, until they have all."""
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(None)) as session:

        async def client(own: list[dict]) -> None:
            for body in own:
                async with session.post("/recommend", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

        await asyncio.gather(*(client(bodies[number::clients]) for number in range(clients)))


def ask_one(address: str, history: list[str]) -> None:
    """Ask for a list, on a connection that stays open."""
    connection = connection_to(address)
    connection.request("POST", "/recommend", json.dumps({"history": history}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    json.loads(answer.read())


@cache
def connection_to(address: str) -> HTTPConnection:
    return HTTPConnection(address.removeprefix("http://"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Computing on one thread, as a server of a small ranker does, which takes it no longer: several would spin for a
    while after each list, on the cores of the server that is asked next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@benchmark
def server() -> Iterator[Figure]:
    """A process of its own; the clients take their share of the same machine."""
    sys.path.append(str(TESTS))  # as pytest does
    from serve_load import run, serving

    ids = processor().item_ids
    histories = [[ids[item - 1] for item in example.history] for example in world().lists]
    for language_model in (False, True):
        name = "SmolLM2-135M" if language_model else "language model off"
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            model = saved(Path(folder) / "model", language_model)
            offline = Recommender.from_pretrained(model)
            timeout = ("--timeout", "600")
            with serving(model, *timeout, log=Path(folder) / "log") as (_, address):
                over_http, here = partial(ask_one, address, histories[0]), partial(offline.recommend, histories[0])
                with nullcontext() if language_model else one_thread():
                    took = in_turns(over_http, here, 3 if language_model else 25)
                yield Figure(f"serve one list, {name}", *took, "s", 1.3, "recommender", overhead=True)
                each = EACH[language_model]
                bodies = [{"history": histories[n % len(histories)]} for n in range(CLIENTS * each)]
                few = bodies[: 2 * each]
                shared, alone = in_turns(
                    lambda address=address, bodies=bodies: asyncio.run(answered(address, bodies, CLIENTS)),
                    lambda address=address, few=few: asyncio.run(answered(address, few, 1)),
                    1 if language_model else 3,
                )
                took = shared / len(bodies), alone / len(few)
                # on processors a language model has as much to compute for each list of a batch as for one alone
                target = 1 if language_model and not torch.accelerator.is_available() else 3
                yield Figure(f"serve {CLIENTS} clients, a list, {name}", *took, "s", target, "one client")
    crowd = run(CROWD, 20)
    assert not crowd["lost"], crowd["first_wrong"]
    mean = CROWD / crowd["per_second"]
    yield Figure(f"serve {CROWD} clients, slowest of 100", crowd["p99"], mean, "s", 2, "mean wait", overhead=True)
    yield Figure(f"serve {CROWD} clients, a list", 1 / crowd["per_second"], crowd["offline"], "s", 1, "recommender")
